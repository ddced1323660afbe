//! Whether the kernel's clock is synchronised with a source of time: adjtimex(2), read only. No crate offers that without
//! also setting the clock, and the gateway itself forbids unsafe code; so these few lines stand here.

/// Largest error, in microseconds, that a clock has which somebody keeps right. The kernel lets the error grow while nobody
/// does, and stops at this; systemd judges by it as well.
const LARGEST_ERROR: i64 = 16_000_000;

/// Whether the kernel says so. An error where asking is not allowed.
pub fn is_synchronised() -> std::io::Result<bool> {
    // SAFETY: timex is plain numbers, for which zeros are valid; modes of 0 ask and change nothing.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a whole timex that lives for the call.
    if unsafe { libc::adjtimex(&mut timex) } == -1 {
        return Err(std::io::Error::last_os_error());
    }
    #[allow(clippy::useless_conversion, reason = "narrower on 32-bit systems")]
    Ok(i64::from(timex.maxerror) < LARGEST_ERROR)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_answers() {
        // what it says depends on the machine
        let answer = super::is_synchronised();
        assert!(answer.is_ok() || answer.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied));
    }
}
