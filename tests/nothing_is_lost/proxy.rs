//! Stands between the gateway and its upstream and does what networks do.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the network does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    /// Nothing bad.
    None,
    /// Every connection ends with FIN, new ones too.
    Fin,
    /// Every connection ends with RST after a part of what was sent, new ones too.
    Reset,
    /// What is sent either way is gone; nobody is told.
    BlackHole,
    /// Both sides have a connection of which the other one knows nothing any more.
    HalfOpen,
    /// Acknowledgements take their time.
    Delayed,
    /// Acknowledgements stay on their way, then the connection breaks or they arrive.
    Withheld,
}

impl Fault {
    /// All that are bad.
    pub const ALL: [Fault; 6] =
        [Fault::Fin, Fault::Reset, Fault::BlackHole, Fault::HalfOpen, Fault::Delayed, Fault::Withheld];
}

/// Looks at what the network does this often while nothing is sent.
const TICK: Duration = Duration::from_millis(5);

#[derive(Default)]
struct Shared {
    fault: AtomicU8,
    connections: AtomicUsize,
    forwarded: AtomicU64,
    /// How often which fault met something that was sent.
    met: [AtomicUsize; Fault::ALL.len() + 1],
    /// Both ends of every half-open connection, so that nobody is told.
    limbo: Mutex<Vec<TcpStream>>,
}

/// The proxy. Its threads end with the test.
pub struct Proxy {
    /// Where the gateway connects.
    pub port: u16,
    shared: Arc<Shared>,
}

impl Proxy {
    /// In front of this loopback port.
    pub fn start(to: u16) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", super::support::free_port())).expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let shared = Arc::<Shared>::default();
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                accepting.connections.fetch_add(1, SeqCst);
                let shared = accepting.clone();
                std::thread::spawn(move || drop(shared.carry(client, SocketAddr::from(([127, 0, 0, 1], to)))));
            }
        });
        Proxy { port, shared }
    }

    /// From now on the network does this.
    pub fn set(&self, fault: Fault) {
        self.shared.fault.store(fault as u8, SeqCst);
        if fault == Fault::None {
            self.shared.limbo.lock().expect("no panic").clear();
        }
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(SeqCst)
    }

    /// How often this fault has met something that was sent.
    pub fn met(&self, fault: Fault) -> usize {
        self.shared.met[fault as usize].load(SeqCst)
    }

    /// Bytes forwarded so far.
    pub fn forwarded(&self) -> u64 {
        self.shared.forwarded.load(SeqCst)
    }
}

impl Shared {
    fn fault(&self) -> Fault {
        let now = self.fault.load(SeqCst);
        Fault::ALL.into_iter().find(|fault| *fault as u8 == now).unwrap_or(Fault::None)
    }

    fn carry(self: Arc<Self>, client: TcpStream, to: SocketAddr) -> io::Result<()> {
        let upstream = TcpStream::connect(to)?;
        for stream in [&client, &upstream] {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(TICK))?;
        }
        let (from, into, shared) = (client.try_clone()?, upstream.try_clone()?, self.clone());
        let is_reset = Arc::<AtomicBool>::default();
        let too = is_reset.clone();
        std::thread::spawn(move || shared.pump(from, into, false, &too));
        self.pump(upstream, client, true, &is_reset);
        Ok(())
    }

    /// Forwards one direction; `is_down`: from the upstream.
    fn pump(&self, mut from: TcpStream, mut into: TcpStream, is_down: bool, is_reset: &AtomicBool) {
        let mut buffer = [0; 16 * 1024];
        // what was swallowed once leaves a hole: such a connection never carries anything again
        let mut is_holed = false;
        loop {
            let count = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => 0,
                Err(_) => break,
            };
            if is_reset.load(SeqCst) {
                return;
            }
            let fault = self.fault();
            if count > 0 && (is_down || !matches!(fault, Fault::Delayed | Fault::Withheld)) {
                self.met[fault as usize].fetch_add(1, SeqCst);
            }
            match fault {
                Fault::Fin => break,
                Fault::Reset => {
                    let _ = into.write_all(&buffer[..count / 2]);
                    return reset(&from, &into, is_reset);
                }
                Fault::BlackHole => {
                    is_holed |= count > 0;
                    continue;
                }
                Fault::HalfOpen if self.keep(&from, &into) => return,
                Fault::Delayed if is_down && count > 0 => std::thread::sleep(TICK),
                Fault::Withheld if is_down && count > 0 => {
                    while self.fault() == Fault::Withheld {
                        std::thread::sleep(TICK);
                    }
                    if count % 2 == 0 {
                        return reset(&from, &into, is_reset);
                    }
                }
                _ => {}
            }
            if is_holed {
                return reset(&from, &into, is_reset);
            }
            if into.write_all(&buffer[..count]).is_err() {
                break;
            }
            self.forwarded.fetch_add(count as u64, SeqCst);
        }
        let _ = (into.shutdown(Shutdown::Write), from.shutdown(Shutdown::Read));
    }

    /// Keeps both ends open and silent until the network is well again.
    fn keep(&self, from: &TcpStream, into: &TcpStream) -> bool {
        let (Ok(from), Ok(into)) = (from.try_clone(), into.try_clone()) else { return false };
        self.limbo.lock().expect("no panic").extend([from, into]);
        true
    }
}

/// Ends both with RST, once the other direction has let go of them.
fn reset(from: &TcpStream, into: &TcpStream, is_reset: &AtomicBool) {
    for stream in [from, into] {
        // a connection that is gone already cannot be reset, and need not
        let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
    }
    is_reset.store(true, SeqCst);
}
