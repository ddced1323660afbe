//! How a connection ends, so that neither side loses what the other has said before.
//!
//! What a client had sent before its connection ended counts, even where another connection takes its place: the rest of
//! it is read and dealt with first ([`Leaving`]). And what the broker says last must arrive: a socket that is closed while
//! something unread is left in it is reset, and a reset takes away what the other end has not read yet. So writing is shut
//! down, and what still comes is read and thrown away until the client closes too ([`part`]).

use std::sync::Arc;
use std::time::Duration;

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::ConnectionEnd;
use crate::access::waiting::WaitingRoom;
use crate::mqtt::Reason;

/// What was sent before the end is read for no longer than this.
const READ_ON: Duration = Duration::from_secs(1);
/// The same while the gateway stops, which has little time for each.
const READ_ON_STOPPING: Duration = Duration::from_millis(200);
/// And no more than this: what a socket can hold of it.
const READ_ON_BYTES: usize = 8 << 20;
/// A client of which nothing came for this long has sent no more.
const QUIET: Duration = Duration::from_millis(10);
/// Whoever does not take the last packet within this time has gone. A client that goes on sending is listened to for as
/// long again, so that it finds out why nobody does any more.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_STOPPING: Duration = Duration::from_millis(300);
const LINGER_BYTES: usize = 32 << 20;

/// A connection that ends as soon as what its client has sent before is read.
pub(super) struct Leaving {
    end: ConnectionEnd,
    until: Instant,
    left: usize,
}

impl Leaving {
    /// Leaves for this reason.
    pub(crate) fn new(end: ConnectionEnd) -> Leaving {
        let time = if end.is_stopping() { READ_ON_STOPPING } else { READ_ON };
        Leaving { end, until: Instant::now() + time, left: READ_ON_BYTES }
    }

    /// Whether a client that is ended so may have sent something that still counts: not if it may not do any more what it
    /// could when it sent it.
    pub(crate) fn is_due(reason: Reason) -> bool {
        reason != Reason::ADMINISTRATIVE_ACTION
    }

    pub(crate) fn has_read(&mut self, count: usize) {
        self.left = self.left.saturating_sub(count);
    }

    pub(crate) fn may_read(&self) -> bool {
        self.left > 0
    }

    /// When it is over if nothing happens; what cannot be read now is waited for longer.
    pub(crate) fn over_at(&self, may_read: bool) -> Instant {
        if may_read { self.until.min(Instant::now() + QUIET) } else { self.until }
    }

    /// Whether its time is over.
    pub(crate) fn is_over(&self, may_read: bool) -> bool {
        may_read || self.left == 0 || Instant::now() >= self.until
    }

    pub(crate) fn into_end(self) -> ConnectionEnd {
        self.end
    }
}

/// Sends the last bytes, and waits until the client has had a chance to read them.
pub(in crate::broker) async fn part<R, W>(
    room: &Arc<WaitingRoom>,
    mut reader: R,
    mut writer: W,
    mut last: impl Buf,
    is_stopping: bool,
) where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let time = if is_stopping { LINGER_STOPPING } else { LINGER };
    let sending = async {
        writer.write_all_buf(&mut last).await?;
        writer.shutdown().await
    };
    if !matches!(timeout(time, sending).await, Ok(Ok(()))) {
        return;
    }
    // it is nobody any more, and gives way to those who want to be somebody
    let (ticket, _) = room.enter(None);
    tokio::select! {
        () = discard(&mut reader) => {}
        () = tokio::time::sleep(time) => {}
        () = ticket.cut() => {}
    }
}

async fn discard(reader: &mut (impl AsyncRead + Unpin)) {
    let mut left = LINGER_BYTES;
    let mut chunk = [0; 2048];
    while left > 0 {
        match reader.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(count) => left = left.saturating_sub(count),
        }
    }
}
