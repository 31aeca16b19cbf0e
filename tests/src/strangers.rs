//! Connections that never say who they are: by the thousand, or one at a time with garbage.

use crate::live::python;
use crate::netns::Netns;
use crate::process::Process;

/// Keeps connections open from several addresses and opens a new one for each that is closed, at
/// most so many a second: a third say nothing, a third send half a ClientHello, a third finish TLS
/// and go on with an HTTP header, a byte each 100 ms. After USR1 none is opened any more; at TERM it says
/// what came of it.
const FLOOD: &str = "
import heapq, resource, select, signal, socket, ssl, sys, time
host, port, most, per_second = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
sources = sys.argv[5:]
resource.setrlimit(resource.RLIMIT_NOFILE, (most + 64,) * 2)
context = ssl._create_unverified_context()
incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
try:
    context.wrap_bio(incoming, outgoing).do_handshake()
except ssl.SSLWantReadError:
    pass
half_hello = outgoing.read()[:150]
header = b'GET / HTTP/1.1\\r\\nHost: relay\\r\\nX-Slow: ' + b'a' * 10000
refills = True
def stop(*_):
    global refills
    refills = False
def leave(*_):
    print('%d opened, %d shook hands, %d were closed' % (opened, shaken, closed), file=sys.stderr, flush=True)
    sys.exit(0)
signal.signal(signal.SIGUSR1, stop)
signal.signal(signal.SIGTERM, leave)
poll, peers, trickling = select.epoll(), {}, []
opened = shaken = closed = 0

class Peer:
    def __init__(self, number):
        self.kind, self.sent = number % 3, 0
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.bind((sources[number // 3 % len(sources)], 0))
        self.socket.connect_ex((host, port))
        self.fd = self.socket.fileno()
        poll.register(self.fd, select.EPOLLOUT | select.EPOLLIN)
        self.state = 'connect'
    def step(self):
        global shaken
        if self.state == 'connect':
            error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, 'connect')
            poll.modify(self.fd, select.EPOLLIN)
            self.state = 'quiet'
            if self.kind == 1:
                self.socket.send(half_hello)
            if self.kind == 2:
                self.socket = context.wrap_socket(self.socket, do_handshake_on_connect=False)
                self.state = 'tls'
        if self.state == 'tls':
            self.socket.do_handshake()
            shaken += 1
            self.state = 'trickle'
            heapq.heappush(trickling, (time.monotonic(), self.fd, id(self)))
        elif self.socket.recv(4096) == b'':
            raise OSError('closed')

def close(peer):
    global closed
    closed += 1
    del peers[peer.fd]
    peer.socket.close()

began = time.monotonic()
while True:
    due = most if opened < most else most + int((time.monotonic() - began) * per_second)
    while refills and len(peers) < most and opened < due:
        peer = Peer(opened)
        peers[peer.fd] = peer
        opened += 1
        if opened == most:
            began = time.monotonic()
            print('under way', file=sys.stderr, flush=True)
    for fd, _ in poll.poll(0.01):
        peer = peers.get(fd)
        try:
            if peer:
                peer.step()
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except OSError:
            close(peer)
    now = time.monotonic()
    while trickling and trickling[0][0] <= now:
        _, fd, identity = heapq.heappop(trickling)
        peer = peers.get(fd)
        if not peer or id(peer) != identity:
            continue
        try:
            peer.socket.send(header[peer.sent:peer.sent + 1])
            peer.sent += 1
            heapq.heappush(trickling, (now + 0.1, fd, identity))
        except OSError:
            close(peer)
";

/// Shakes hands by TLS, sends what the first argument after the address says in hexadecimal, and
/// prints in hexadecimal all that comes until the other end closes.
const SAY: &str = "
import socket, ssl, sys
bytes_sent = bytes.fromhex(open(sys.argv[4]).read())
raw = socket.create_connection((sys.argv[1], int(sys.argv[2])), 30, (sys.argv[3], 0))
peer = ssl._create_unverified_context().wrap_socket(raw, suppress_ragged_eofs=True)
answer = b''
try:
    peer.sendall(bytes_sent)
except OSError:
    pass
try:
    while piece := peer.recv(65536):
        answer += piece
except TimeoutError:
    raise
except OSError:
    pass
print(answer.hex())
";

/// Connections to `host:port` from a namespace's addresses, kept up until USR1 or the end.
pub fn flood(netns: &Netns, relay: (&str, u16), most: u32, per_second: u32, sources: &[String]) -> Process {
    let mut command = netns.command("python3");
    let numbers = [u32::from(relay.1), most, per_second].map(|number| number.to_string());
    command.args(["-c", FLOOD, relay.0]).args(numbers).args(sources);
    Process::start(&mut command)
}

/// What a relay answers to these bytes within TLS, until it closes; 30 s of silence fail the test.
pub fn say(netns: &Netns, relay: (&str, u16), source: &str, bytes: &[u8]) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::write(file.path(), text).expect("written");
    let (port, path) = (relay.1.to_string(), file.path().to_string_lossy().into_owned());
    let answer = python(netns, SAY, &[relay.0, &port, source, &path]);
    let answer = answer.trim();
    (0..answer.len() / 2)
        .map(|at| u8::from_str_radix(&answer[2 * at..2 * at + 2], 16).expect("hexadecimal"))
        .collect()
}
