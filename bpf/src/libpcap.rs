//! libpcap, opened by name when it is first needed. The only `unsafe` of the crate.
//!
//! What makes it sound:
//!
//! * The library is never closed once it is open, so its functions live as long as the process.
//! * Every call goes through [`with_libpcap`], which holds one lock: `pcap_compile` keeps its state in static variables
//!   before libpcap 1.8.
//! * The declarations below are those of pcap/pcap.h; they have not changed since libpcap 1.0.
//! * A [`Handle`] is a `pcap_t` of its own and closes it; memory of libpcap is copied before the call returns.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::{Mutex, PoisonError};

use libloading::Library;

use crate::instruction::Instruction;

/// Why libpcap could not be opened. A filter cannot be compiled without it; everything else works.
#[derive(Debug, thiserror::Error)]
#[error("no usable libpcap ({INSTALL}); tried {tried}")]
pub struct LoadError {
    /// Names that were tried, in order, joined by commas.
    pub tried: String,
    /// What the system said of the first of them.
    #[source]
    pub source: libloading::Error,
}

#[cfg(target_vendor = "apple")]
const NAMES: &[&str] =
    &["libpcap.dylib", "libpcap.A.dylib", "/usr/lib/libpcap.dylib", "/usr/lib/libpcap.A.dylib"];
#[cfg(windows)]
const NAMES: &[&str] = &["wpcap.dll", "C:\\Windows\\System32\\Npcap\\wpcap.dll"];
#[cfg(not(any(target_vendor = "apple", windows)))]
const NAMES: &[&str] = &["libpcap.so.0.8", "libpcap.so.1", "libpcap.so"];

#[cfg(target_vendor = "apple")]
const INSTALL: &str = "it is part of macOS";
#[cfg(windows)]
const INSTALL: &str = "install Npcap";
#[cfg(not(any(target_vendor = "apple", windows)))]
const INSTALL: &str = "install libpcap0.8 on Debian and Ubuntu, libpcap elsewhere";

/// `PCAP_ERRBUF_SIZE` of pcap/pcap.h.
#[cfg(target_os = "linux")]
const ERROR_BYTES: usize = 256;

/// `struct bpf_program` of pcap/bpf.h.
#[repr(C)]
struct BpfProgram {
    len: c_uint,
    instructions: *mut Instruction,
}

type OpenDead = unsafe extern "C" fn(link_type: c_int, snaplen: c_int) -> *mut c_void;
type Compile =
    unsafe extern "C" fn(*mut c_void, *mut BpfProgram, *const c_char, optimize: c_int, mask: u32) -> c_int;
type FreeCode = unsafe extern "C" fn(*mut BpfProgram);
type ErrorText = unsafe extern "C" fn(*mut c_void) -> *const c_char;
type Close = unsafe extern "C" fn(*mut c_void);
type Version = unsafe extern "C" fn() -> *const c_char;

/// The functions of an open libpcap.
pub(crate) struct Libpcap {
    open_dead: OpenDead,
    compile: Compile,
    free_code: FreeCode,
    error_text: ErrorText,
    close: Close,
    version: Version,
    #[cfg(target_os = "linux")]
    live: live::Functions,
    /// Keeps the functions above in memory.
    _library: Library,
}

/// The open library. It stays here until the process ends; a failure is not kept, as libpcap may be installed later.
static LIBPCAP: Mutex<Option<Libpcap>> = Mutex::new(None);

/// Runs `work` with libpcap, opened if need be, while no other thread uses it.
pub(crate) fn with_libpcap<T>(work: impl FnOnce(&Libpcap) -> T) -> Result<T, LoadError> {
    // A panic elsewhere leaves either no library or a complete one.
    let mut slot = LIBPCAP.lock().unwrap_or_else(PoisonError::into_inner);
    let libpcap = match &mut *slot {
        Some(open) => open,
        none => none.insert(open_any(NAMES)?),
    };
    Ok(work(libpcap))
}

fn open_any(names: &[&str]) -> Result<Libpcap, LoadError> {
    let mut first_error = None;
    for name in names {
        match open(name) {
            Ok(libpcap) => return Ok(libpcap),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    let source = first_error.expect("every list of names has an entry, and each failed");
    Err(LoadError { tried: names.join(", "), source })
}

fn open(name: &str) -> Result<Libpcap, libloading::Error> {
    // SAFETY: opening runs the initialisers of the library. libpcap and what it depends on have none that ask
    // anything of the caller.
    let library = unsafe { load(name)? };
    // SAFETY: each type is the declaration of that function in pcap/pcap.h. The pointers are copied out of their
    // symbols, which is sound because the library is kept beside them and never closed.
    unsafe {
        Ok(Libpcap {
            open_dead: *library.get::<OpenDead>(c"pcap_open_dead")?,
            compile: *library.get::<Compile>(c"pcap_compile")?,
            free_code: *library.get::<FreeCode>(c"pcap_freecode")?,
            error_text: *library.get::<ErrorText>(c"pcap_geterr")?,
            close: *library.get::<Close>(c"pcap_close")?,
            version: *library.get::<Version>(c"pcap_lib_version")?,
            #[cfg(target_os = "linux")]
            live: live::Functions::of(&library)?,
            _library: library,
        })
    }
}

/// # Safety
/// The initialisers of the library ask nothing of the caller.
#[cfg(not(windows))]
unsafe fn load(name: &str) -> Result<Library, libloading::Error> {
    // SAFETY: what the caller promises is what this asks for.
    unsafe { Library::new(name) }
}

/// Npcap has a folder of its own, in which wpcap.dll must find its Packet.dll.
///
/// # Safety
/// The initialisers of the library ask nothing of the caller.
#[cfg(windows)]
unsafe fn load(name: &str) -> Result<Library, libloading::Error> {
    use libloading::os::windows::{LOAD_WITH_ALTERED_SEARCH_PATH, Library as WindowsLibrary};
    if !name.contains('\\') {
        // SAFETY: what the caller promises is what this asks for.
        return unsafe { Library::new(name) };
    }
    // SAFETY: as above; the flag asks for an absolute path, which a name with a backslash is in our list.
    unsafe { WindowsLibrary::load_with_flags(name, LOAD_WITH_ALTERED_SEARCH_PATH).map(Library::from) }
}

impl Libpcap {
    /// Name and version as libpcap tells them.
    pub(crate) fn version(&self) -> String {
        // SAFETY: takes nothing and returns a string that lives as long as the library.
        unsafe { text((self.version)()) }
    }

    /// A handle without an interface, for frames of link type `dlt`. `None` when memory has run out.
    pub(crate) fn open_dead(&self, dlt: c_int, snaplen: u32) -> Option<Handle<'_>> {
        let snaplen = c_int::try_from(snaplen).unwrap_or(c_int::MAX);
        // SAFETY: takes two numbers of any value and returns a new handle or null.
        let raw = NonNull::new(unsafe { (self.open_dead)(dlt, snaplen) })?;
        Some(Handle { libpcap: self, raw })
    }
}

/// A `pcap_t` of our own.
pub(crate) struct Handle<'a> {
    libpcap: &'a Libpcap,
    raw: NonNull<c_void>,
}

impl Handle<'_> {
    /// Compiles with optimisation; the error is libpcap's text.
    ///
    /// The netmask that `ip broadcast` would need is 0, unknown: no program is for one interface only.
    pub(crate) fn compile(&self, expression: &CStr) -> Result<Vec<Instruction>, String> {
        let mut program = BpfProgram { len: 0, instructions: ptr::null_mut() };
        // SAFETY: the handle is open, the program is ours to be written, the expression ends in NUL.
        let status =
            unsafe { (self.libpcap.compile)(self.raw.as_ptr(), &raw mut program, expression.as_ptr(), 1, 0) };
        if status < 0 {
            return Err(self.error_text());
        }
        let instructions = if program.len == 0 || program.instructions.is_null() {
            Vec::new()
        } else {
            // SAFETY: pcap_compile succeeded, so `instructions` points to `len` of struct bpf_insn, whose layout is
            // that of Instruction, and nobody else has them before pcap_freecode below.
            unsafe { slice::from_raw_parts(program.instructions, program.len as usize) }.to_vec()
        };
        // SAFETY: the program was filled by pcap_compile and is not used afterwards.
        unsafe { (self.libpcap.free_code)(&raw mut program) };
        Ok(instructions)
    }

    /// What libpcap says of the last failure on this handle.
    fn error_text(&self) -> String {
        // SAFETY: the handle is open; its buffer holds a string that is copied at once.
        unsafe { text((self.libpcap.error_text)(self.raw.as_ptr())) }
    }
}

impl Drop for Handle<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and this is its last use.
        unsafe { (self.libpcap.close)(self.raw.as_ptr()) }
    }
}

/// Copies a string of libpcap.
///
/// # Safety
/// `string` is null, or a string ending in NUL that does not change during the call.
unsafe fn text(string: *const c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: not null, and the caller promises the rest.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().trim_end().to_owned()
}

/// Handles on an interface, as the sniffer needs them.
#[cfg(target_os = "linux")]
mod live {
    use super::*;

    type Create = unsafe extern "C" fn(*const c_char, *mut c_char) -> *mut c_void;
    type SetSnaplen = unsafe extern "C" fn(*mut c_void, c_int) -> c_int;
    type Activate = unsafe extern "C" fn(*mut c_void) -> c_int;
    type StatusText = unsafe extern "C" fn(c_int) -> *const c_char;
    type LinkType = unsafe extern "C" fn(*mut c_void) -> c_int;

    /// The functions that only a live handle needs.
    pub(super) struct Functions {
        create: Create,
        set_snaplen: SetSnaplen,
        activate: Activate,
        status_text: StatusText,
        link_type: LinkType,
    }

    impl Functions {
        /// # Safety
        /// `library` is a libpcap, and stays open as long as the functions are used.
        pub(super) unsafe fn of(library: &Library) -> Result<Functions, libloading::Error> {
            // SAFETY: each type is the declaration of that function in pcap/pcap.h; the caller promises the rest.
            unsafe {
                Ok(Functions {
                    create: *library.get::<Create>(c"pcap_create")?,
                    set_snaplen: *library.get::<SetSnaplen>(c"pcap_set_snaplen")?,
                    activate: *library.get::<Activate>(c"pcap_activate")?,
                    status_text: *library.get::<StatusText>(c"pcap_statustostr")?,
                    link_type: *library.get::<LinkType>(c"pcap_datalink")?,
                })
            }
        }
    }

    impl Libpcap {
        /// A handle that captures on `interface`, not promiscuous, until it is dropped.
        pub(crate) fn open_live(&self, interface: &CStr, snaplen: u32) -> Result<Handle<'_>, String> {
            let mut error = [0 as c_char; ERROR_BYTES];
            // SAFETY: the name ends in NUL and the buffer has the size pcap.h demands.
            let raw = unsafe { (self.live.create)(interface.as_ptr(), error.as_mut_ptr()) };
            let Some(raw) = NonNull::new(raw) else {
                // SAFETY: pcap_create wrote a string there, and the buffer was zeros before.
                return Err(unsafe { text(error.as_ptr()) });
            };
            let handle = Handle { libpcap: self, raw };
            let snaplen = c_int::try_from(snaplen).unwrap_or(c_int::MAX);
            // SAFETY: the handle is open and not yet active, the only thing that makes this fail.
            unsafe { (self.live.set_snaplen)(raw.as_ptr(), snaplen) };
            // SAFETY: the handle is open and not yet active.
            let status = unsafe { (self.live.activate)(raw.as_ptr()) };
            if status >= 0 {
                return Ok(handle);
            }
            /// `PCAP_ERROR`: nothing but the text of the handle.
            const GENERIC: c_int = -1;
            // SAFETY: takes any number, returns a string of the library or one in a static buffer that only another
            // call changes, which the lock of `with_libpcap` excludes.
            let status_text = unsafe { text((self.live.status_text)(status)) };
            Err(match handle.error_text() {
                detail if status == GENERIC => detail,
                detail if detail.is_empty() || detail == status_text => status_text,
                detail => format!("{status_text}: {detail}"),
            })
        }
    }

    impl Handle<'_> {
        /// The DLT in which libpcap would deliver frames of an active handle.
        pub(crate) fn dlt(&self) -> c_int {
            // SAFETY: the handle is open.
            unsafe { (self.libpcap.live.link_type)(self.raw.as_ptr()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absence_is_told_with_what_to_install() {
        let error =
            open_any(&["libringcast-has-no-such.so", "nor-this.so"]).err().expect("there is no such library");
        let text = error.to_string();
        assert!(
            text.contains(INSTALL) && text.ends_with("tried libringcast-has-no-such.so, nor-this.so"),
            "{text}"
        );
    }
}
