//! A file system in memory that fails, fills up, and tears what was not synced when it crashes.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::rc::Rc;

use super::fs::{Fs, FsFile, LockError};

/// What reaches the disk whole or not at all.
const SECTOR_BYTES: usize = 512;

/// Numbers by seed (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// How often calls fail, in percent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub create: u64,
    pub read: u64,
    pub write: u64,
    pub sync: u64,
    pub rename: u64,
    pub remove: u64,
}

#[derive(Debug, Default)]
struct Inode {
    content: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors that a failed sync has dropped: a later sync does not write them.
    dropped: BTreeSet<usize>,
}

#[derive(Debug)]
struct Disk {
    random: Random,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    inodes: Vec<Inode>,
    capacity: u64,
    faults: Faults,
    /// Grows with each crash: what was opened before has no effect any more.
    life: u64,
}

/// The file system; a clone is the same one.
#[derive(Clone, Debug)]
pub struct SimFs {
    disk: Rc<RefCell<Disk>>,
    life: u64,
}

/// An open file of it.
#[derive(Debug)]
pub struct SimFile {
    fs: SimFs,
    inode: usize,
}

impl SimFs {
    pub fn new(seed: u64) -> Self {
        let disk = Disk {
            random: Random(seed),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            inodes: Vec::new(),
            capacity: u64::MAX,
            faults: Faults::default(),
            life: 0,
        };
        Self { disk: Rc::new(RefCell::new(disk)), life: 0 }
    }

    pub fn set_faults(&self, faults: Faults) {
        self.disk.borrow_mut().faults = faults;
    }

    pub fn set_capacity(&self, bytes: u64) {
        self.disk.borrow_mut().capacity = bytes;
    }

    /// Bytes of all files.
    pub fn used(&self) -> u64 {
        self.disk.borrow().used()
    }

    /// Bytes of the files whose names end so.
    pub fn used_by(&self, suffix: &str) -> u64 {
        let disk = self.disk.borrow();
        let of = disk.names.iter().filter(|(name, _)| name.ends_with(suffix));
        of.map(|(_, inode)| disk.inodes[*inode].content.len() as u64).sum()
    }

    /// The content of a file, to be looked at and changed behind everybody's back.
    pub fn edit(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut disk = self.disk.borrow_mut();
        let inode = match disk.names.get(name) {
            Some(inode) => *inode,
            None => {
                disk.inodes.push(Inode::default());
                let inode = disk.inodes.len() - 1;
                disk.names.insert(name.to_owned(), inode);
                disk.durable_names.insert(name.to_owned(), inode);
                inode
            }
        };
        let inode = &mut disk.inodes[inode];
        change(&mut inode.content);
        inode.durable.clone_from(&inode.content);
    }

    /// The process is gone, the files are as they are. Returns what the next process sees.
    pub fn kill(&self) -> Self {
        let mut disk = self.disk.borrow_mut();
        disk.life += 1;
        Self { disk: Rc::clone(&self.disk), life: disk.life }
    }

    /// The host is gone: of what was not synced any part may have reached the disk.
    pub fn crash(&self) -> Self {
        let mut disk = self.disk.borrow_mut();
        let disk = &mut *disk;
        disk.life += 1;
        let all: BTreeSet<String> = disk.names.keys().chain(disk.durable_names.keys()).cloned().collect();
        for name in all {
            let (new, old) = (disk.names.get(&name).copied(), disk.durable_names.get(&name).copied());
            let kept = if disk.random.chance(50) { new } else { old };
            match kept {
                Some(inode) => drop(disk.names.insert(name.clone(), inode)),
                None => drop(disk.names.remove(&name)),
            }
        }
        disk.durable_names = disk.names.clone();
        for inode in &mut disk.inodes {
            inode.tear(&mut disk.random);
        }
        Self { disk: Rc::clone(&self.disk), life: disk.life }
    }

    fn disk(&self, chance: impl Fn(&Faults) -> u64) -> io::Result<std::cell::RefMut<'_, Disk>> {
        let mut disk = self.disk.borrow_mut();
        let percent = chance(&disk.faults);
        if disk.life != self.life || disk.random.chance(percent) {
            return Err(io::Error::other("input/output error"));
        }
        Ok(disk)
    }
}

impl Disk {
    fn used(&self) -> u64 {
        self.names.values().map(|inode| self.inodes[*inode].content.len() as u64).sum()
    }

    fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.used())
    }
}

impl Inode {
    fn sectors(&self) -> usize {
        self.content.len().max(self.durable.len()).div_ceil(SECTOR_BYTES)
    }

    fn tear(&mut self, random: &mut Random) {
        let bytes = if random.chance(50) { self.content.len() } else { self.durable.len() };
        for sector in 0..self.sectors() {
            let garbage = random.chance(15);
            let new = random.chance(50) && !self.dropped.contains(&sector);
            for at in sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES {
                let old_byte = self.durable.get(at).copied().unwrap_or(0);
                let Some(byte) = self.content.get_mut(at) else { break };
                if *byte == old_byte && at < self.durable.len() {
                    continue;
                }
                if garbage {
                    *byte = random.next() as u8;
                } else if !new {
                    *byte = old_byte;
                }
            }
        }
        // What was cut off, and is there again.
        let durable = &self.durable[self.content.len().min(self.durable.len())..];
        self.content.extend_from_slice(durable);
        self.content.resize(bytes, 0);
        self.durable.clone_from(&self.content);
        self.dropped.clear();
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned()
}

fn full() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

impl Fs for SimFs {
    type File = SimFile;
    type Lock = ();

    fn create_directory(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, _path: &Path) -> io::Result<Vec<(String, u64)>> {
        let disk = self.disk(|_| 0)?;
        let bytes = |inode: &usize| disk.inodes[*inode].content.len() as u64;
        Ok(disk.names.iter().map(|(name, inode)| (name.clone(), bytes(inode))).collect())
    }

    fn lock(&self, _path: &Path) -> Result<(), LockError> {
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<SimFile> {
        let mut disk = self.disk(|faults| faults.create)?;
        if disk.free() == 0 {
            return Err(full());
        }
        disk.inodes.push(Inode::default());
        let inode = disk.inodes.len() - 1;
        disk.names.insert(name_of(path), inode);
        Ok(SimFile { fs: self.clone(), inode })
    }

    fn open(&self, path: &Path, _writable: bool) -> io::Result<SimFile> {
        let disk = self.disk(|faults| faults.read)?;
        let inode = *disk.names.get(&name_of(path)).ok_or(io::ErrorKind::NotFound)?;
        Ok(SimFile { fs: self.clone(), inode })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk(|faults| faults.remove)?;
        disk.names.remove(&name_of(path)).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk(|faults| faults.rename)?;
        let inode = disk.names.remove(&name_of(from)).ok_or(io::ErrorKind::NotFound)?;
        disk.names.insert(name_of(to), inode);
        Ok(())
    }

    fn sync_directory(&self, _path: &Path) -> io::Result<()> {
        let mut disk = self.disk(|faults| faults.sync)?;
        disk.durable_names = disk.names.clone();
        Ok(())
    }
}

impl FsFile for SimFile {
    fn bytes(&self) -> io::Result<u64> {
        let disk = self.fs.disk(|faults| faults.read)?;
        Ok(disk.inodes[self.inode].content.len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let disk = self.fs.disk(|faults| faults.read)?;
        let content = &disk.inodes[self.inode].content;
        let rest = content.get(offset as usize..).unwrap_or_default();
        let bytes = rest.len().min(out.len());
        out[..bytes].copy_from_slice(&rest[..bytes]);
        Ok(bytes)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // The life of the process is over: nothing is written, and nobody is there to be told.
        let mut disk = self.fs.disk(|_| 0)?;
        let disk = &mut *disk;
        let percent = disk.faults.write;
        let fails = disk.random.chance(percent);
        let room = disk.free() + disk.inodes[self.inode].content.len() as u64;
        let fits = (room.saturating_sub(offset) as usize).min(bytes.len());
        let part = if fails { disk.random.below(fits as u64) as usize } else { fits };
        let inode = &mut disk.inodes[self.inode];
        let (start, end) = (offset as usize, offset as usize + part);
        if part > 0 {
            if inode.content.len() < end {
                inode.content.resize(end, 0);
            }
            inode.content[start..end].copy_from_slice(&bytes[..part]);
            inode
                .dropped
                .retain(|sector| !(start / SECTOR_BYTES..=(end - 1) / SECTOR_BYTES).contains(sector));
        }
        match (fails, fits < bytes.len()) {
            (true, _) => Err(io::Error::other("input/output error")),
            (false, true) => Err(full()),
            (false, false) => Ok(()),
        }
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let mut disk = self.fs.disk(|_| 0)?;
        let room = disk.free();
        let inode = &mut disk.inodes[self.inode];
        if bytes.saturating_sub(inode.content.len() as u64) > room {
            return Err(full());
        }
        if inode.content.len() < bytes as usize {
            inode.content.resize(bytes as usize, 0);
        }
        Ok(())
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        let mut disk = self.fs.disk(|faults| faults.write)?;
        disk.inodes[self.inode].content.resize(bytes as usize, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.fs.disk(|_| 0)?;
        let disk = &mut *disk;
        let percent = disk.faults.sync;
        let fails = disk.random.chance(percent);
        let inode = &mut disk.inodes[self.inode];
        let Inode { content, durable, dropped } = inode;
        durable.resize(content.len(), 0);
        for sector in 0..content.len().div_ceil(SECTOR_BYTES) {
            let range = sector * SECTOR_BYTES..((sector + 1) * SECTOR_BYTES).min(content.len());
            if content[range.clone()] == durable[range.clone()] || dropped.contains(&sector) {
                continue;
            }
            if !fails || disk.random.chance(30) {
                durable[range.clone()].copy_from_slice(&content[range]);
            } else {
                dropped.insert(sector);
                // Clean in the page cache, and perhaps read again from the disk.
                if disk.random.chance(50) {
                    content[range.clone()].copy_from_slice(&durable[range]);
                }
            }
        }
        if fails { Err(io::Error::other("input/output error")) } else { Ok(()) }
    }

    fn begin_sync(&self, _offset: u64, _bytes: u64) {}

    fn forget(&self, _offset: u64, _bytes: u64) {}
}
