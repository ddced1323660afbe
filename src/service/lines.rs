//! Writes the lines of the log to stderr without waiting for ever.
//!
//! A pipe or a terminal whose reader has stopped (`pigateway | less`, Ctrl-S, a hung program that collects logs) takes
//! nothing more once its buffer is full. A write would then stop the thread that logs, and soon the gateway. So a line
//! waits for at most [`PATIENCE`], and is left out after that. As long as nothing is taken, further lines are left out
//! at once. Their number is written when the reader goes on.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing_subscriber::fmt::MakeWriter;

/// How long a line waits for a reader that takes nothing.
const PATIENCE: Duration = Duration::from_secs(2);
/// A pipe that is ready takes this many bytes without waiting (`PIPE_BUF`).
const READY: usize = 4096;

/// The lines of the log.
#[derive(Debug)]
pub(super) struct LogLines<W> {
    to: Mutex<LogOutput<W>>,
    patience: Duration,
}

#[derive(Debug)]
struct LogOutput<W> {
    to: W,
    /// The number of lines that were left out since the last one that was written.
    left_out: u64,
}

impl LogLines<io::Stderr> {
    pub(super) fn stderr() -> LogLines<io::Stderr> {
        LogLines::new(io::stderr(), PATIENCE)
    }
}

impl<W: Write + AsFd> LogLines<W> {
    fn new(to: W, patience: Duration) -> LogLines<W> {
        LogLines { to: Mutex::new(LogOutput { to, left_out: 0 }), patience }
    }
}

impl<W: Write + AsFd> LogOutput<W> {
    /// Whether some bytes are taken without waiting any longer than this.
    fn is_ready(&self, patience: Duration) -> bool {
        let wait = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: i64::from(patience.subsec_nanos()) as _ };
        // an error of the reader is for the write to tell
        poll(&mut [PollFd::new(&self.to, PollFlags::OUT)], Some(&wait)) != Ok(0)
    }

    fn write(&mut self, line: &[u8], patience: Duration) -> io::Result<()> {
        if !self.is_ready(if self.left_out > 0 { Duration::ZERO } else { patience }) {
            self.left_out += 1;
            return Ok(());
        }
        if self.left_out > 0 {
            let left_out = std::mem::take(&mut self.left_out);
            writeln!(self.to, "{left_out} lines of the log are left out here, because nothing has read them")?;
        }
        for (at, part) in line.chunks(READY).enumerate() {
            // the first part follows the wait above, or a short line after it
            if !self.is_ready(patience) {
                self.left_out += 1;
                return if at > 0 { self.end_line() } else { Ok(()) };
            }
            self.to.write_all(part)?;
        }
        Ok(())
    }

    /// Ends a line of which only a part was taken, if there is room for that.
    fn end_line(&mut self) -> io::Result<()> {
        if self.is_ready(Duration::ZERO) { self.to.write_all(b"\n") } else { Ok(()) }
    }
}

impl<W: Write + AsFd> Write for &LogLines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.to.lock().write(line, self.patience)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.lock().to.flush()
    }
}

impl<'a, W: Write + AsFd + 'a> MakeWriter<'a> for LogLines<W> {
    type Writer = &'a LogLines<W>;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_reader_that_has_stopped_holds_nobody_and_is_told_what_it_has_missed() {
        let (mut reader, writer) = io::pipe().unwrap();
        let log = LogLines::new(writer, Duration::from_millis(20));
        let line = |number: usize| format!("{number:0>999}\n");
        for number in 0..300 {
            (&log).write_all(line(number).as_bytes()).unwrap();
        }
        let left_out = log.to.lock().left_out;
        assert!((100..300).contains(&left_out), "{left_out}");
        let mut taken = vec![0; (300 - left_out as usize) * 1000];
        reader.read_exact(&mut taken).unwrap();
        let expected: String = (0..300 - left_out as usize).map(line).collect();
        assert_eq!(String::from_utf8(taken).unwrap(), expected);
        (&log).write_all(b"it goes on\n").unwrap();
        drop(log);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        let told = format!("{left_out} lines of the log are left out here, because nothing has read them\n");
        assert_eq!(rest, told + "it goes on\n");
    }

    #[test]
    fn long_lines_are_whole_where_somebody_reads() {
        let (mut reader, writer) = io::pipe().unwrap();
        let log = LogLines::new(writer, Duration::from_secs(60));
        let long = vec![b'x'; 300_000];
        let reading = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).map(|_| all)
        });
        (&log).write_all(&long).unwrap();
        drop(log);
        assert_eq!(reading.join().unwrap().unwrap(), long);
    }
}
