//! Asks the kernel how much of what was written is still on its way.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::BorrowedFd;

use rustix::fs::fstat;

/// The kernel's tables of TCP sockets.
const TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];

/// The number of bytes that were written to a TCP socket and that the other side has not acknowledged; `None` if the kernel
/// does not tell. The system call for this (SIOCOUTQ) is unsafe in every crate, and the tables have the same number. They may
/// take some milliseconds, so this is for rare questions.
pub(crate) fn unacknowledged(socket: BorrowedFd<'_>) -> Option<u64> {
    let inode = fstat(socket).ok()?.st_ino.to_string();
    TABLES.iter().find_map(|table| find(BufReader::new(File::open(table).ok()?), &inode))
}

/// The length of the sending queue of a socket in a table.
fn find(table: impl BufRead, inode: &str) -> Option<u64> {
    table.lines().map_while(Result::ok).find_map(|line| {
        // sl, local_address, rem_address, st, tx_queue:rx_queue, tr:tm->when, retrnsmt, uid, timeout, inode
        let mut columns = line.split_ascii_whitespace().skip(4);
        let queues = columns.next()?;
        let (sending, _) = queues.split_once(':').filter(|_| columns.nth(4) == Some(inode))?;
        u64::from_str_radix(sending, 16).ok()
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_the_other_side_has_not_read_is_counted() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(host).unwrap();
            let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut theirs, _) = listener.accept().unwrap();
            ours.set_nonblocking(true).unwrap();
            let mut written = 0;
            while let Ok(bytes) = ours.write(&[0; 65536]) {
                written += bytes as u64;
            }
            let waiting = unacknowledged(ours.as_fd()).unwrap();
            assert!(waiting > 0 && waiting <= written, "{waiting} of {written}");
            theirs.read_exact(&mut vec![0; written as usize]).unwrap();
            while unacknowledged(ours.as_fd()) != Some(0) {
                std::thread::yield_now();
            }
        }
        assert_eq!(unacknowledged(File::open("/dev/null").unwrap().as_fd()), None);
    }
}
