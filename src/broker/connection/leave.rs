//! Ends connections so that neither side loses what the other has sent before.
//!
//! What a client has sent before the end counts, even if another connection takes over its session: the rest of it is read
//! and processed first ([`Leaving`]). The last packet of the broker must arrive too. If a socket is closed while it has
//! unread input, the system resets the connection, and a reset discards what the other side has not read yet. So the broker
//! shuts down its sending direction and discards input until the client closes too ([`part`]).

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::ConnectionEnd;
use super::input::{SMALLEST_READ, read};
use crate::access::waiting::WaitingRoom;
use crate::mqtt::Reason;

/// The longest time for reading what was sent before the end.
const READ_ON: Duration = Duration::from_secs(1);
/// The same during a shutdown of the gateway, which has little time for each connection.
const READ_ON_STOPPING: Duration = Duration::from_millis(200);
/// The most bytes that are read then: more than the buffers of a socket can hold.
const READ_ON_BYTES: usize = 8 << 20;
/// If nothing arrives for this time, the client has sent nothing more.
const QUIET: Duration = Duration::from_millis(10);
/// A client that does not read the last packet within this time counts as gone. A client that continues to send is kept for
/// the same time again, so that it can notice the end.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_STOPPING: Duration = Duration::from_millis(300);
const LINGER_BYTES: usize = 32 << 20;

/// A connection that ends as soon as everything that its client has sent before has been read.
pub(super) struct Leaving {
    end: ConnectionEnd,
    until: Instant,
    left: usize,
}

impl Leaving {
    pub(crate) fn new(end: ConnectionEnd) -> Leaving {
        let time = if end.is_stopping() { READ_ON_STOPPING } else { READ_ON };
        Leaving { end, until: Instant::now() + time, left: READ_ON_BYTES }
    }

    /// Whether what the client has sent before the end still counts. It does not if the reason is that the client has lost
    /// the right to send it.
    pub(crate) fn is_due(reason: Reason) -> bool {
        reason != Reason::ADMINISTRATIVE_ACTION
    }

    pub(crate) fn has_read(&mut self, count: usize) {
        self.left = self.left.saturating_sub(count);
    }

    pub(crate) fn may_read(&self) -> bool {
        self.left > 0
    }

    /// When reading ends if nothing more arrives. If the connection may not be read at present, this is later.
    pub(crate) fn over_at(&self, may_read: bool) -> Instant {
        if may_read { self.until.min(Instant::now() + QUIET) } else { self.until }
    }

    /// Whether reading has ended.
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
    // the client counts as unknown from now on, and gives way to connections that want to sign in
    let (ticket, _) = room.enter(None);
    tokio::select! {
        () = discard(&mut reader) => {}
        () = tokio::time::sleep(time) => {}
        () = ticket.cut() => {}
    }
}

async fn discard(reader: &mut (impl AsyncRead + Unpin)) {
    let mut left = LINGER_BYTES;
    let mut chunk = BytesMut::new();
    while left > 0 {
        match read(reader, &mut chunk, SMALLEST_READ).await {
            Ok(0) | Err(_) => return,
            Ok(count) => left = left.saturating_sub(count),
        }
        chunk.clear();
    }
}
