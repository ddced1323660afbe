//! A proxy between the gateway and its upstream that simulates the faults of networks.

use super::support::ReadSome;
use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The present behaviour of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    /// No fault.
    None,
    /// Every connection ends with FIN, including new ones.
    Fin,
    /// Every connection ends with RST after a part of the sent bytes, including new ones.
    Reset,
    /// All bytes in both directions are lost silently.
    BlackHole,
    /// Both sides have an open connection that the other side has forgotten.
    HalfOpen,
    /// Acknowledgements are delayed.
    Delayed,
    /// Acknowledgements are held, and later the connection breaks or they arrive.
    Withheld,
}

impl Fault {
    /// All faults.
    pub const ALL: [Fault; 6] =
        [Fault::Fin, Fault::Reset, Fault::BlackHole, Fault::HalfOpen, Fault::Delayed, Fault::Withheld];
}

/// The interval at which the behaviour is checked while nothing is sent.
const TICK: Duration = Duration::from_millis(5);

#[derive(Default)]
struct Shared {
    fault: AtomicU8,
    connections: AtomicUsize,
    forwarded: AtomicU64,
    /// For each fault how often it has affected sent bytes.
    met: [AtomicUsize; Fault::ALL.len() + 1],
    /// Both ends of every half-open connection, which are kept so that neither side is notified.
    limbo: Mutex<Vec<TcpStream>>,
}

/// The proxy. Its threads end with the test.
pub struct Proxy {
    /// The port to which the gateway connects.
    pub port: u16,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Starts a proxy in front of this loopback port.
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

    /// Changes the behaviour of the network.
    pub fn set(&self, fault: Fault) {
        self.shared.fault.store(fault as u8, SeqCst);
        if fault == Fault::None {
            self.shared.limbo.lock().expect("no panic").clear();
        }
    }

    /// The number of connections so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(SeqCst)
    }

    /// How often this fault has affected sent bytes.
    pub fn met(&self, fault: Fault) -> usize {
        self.shared.met[fault as usize].load(SeqCst)
    }

    /// The number of bytes that were forwarded so far.
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

    /// Forwards one direction; `is_down` means from the upstream to the gateway.
    fn pump(&self, mut from: TcpStream, mut into: TcpStream, is_down: bool, is_reset: &AtomicBool) {
        let mut buffer = [0; 16 * 1024];
        // lost bytes leave a gap, so such a connection never carries anything again
        let mut is_holed = false;
        loop {
            let count = match from.read_some(&mut buffer) {
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

    /// Keeps both ends open and silent until the fault is over.
    fn keep(&self, from: &TcpStream, into: &TcpStream) -> bool {
        let (Ok(from), Ok(into)) = (from.try_clone(), into.try_clone()) else { return false };
        self.limbo.lock().expect("no panic").extend([from, into]);
        true
    }
}

/// Ends both connections with RST, once the thread of the other direction has released them.
fn reset(from: &TcpStream, into: &TcpStream, is_reset: &AtomicBool) {
    for stream in [from, into] {
        // a connection that has already ended cannot be reset, and need not be
        let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
    }
    is_reset.store(true, SeqCst);
}
