//! Asks the kernel whether its clock is synchronised with a source of time, by adjtimex(2) and without changing anything.
//! No crate offers that without also being able to set the clock, and the gateway itself forbids unsafe code, so these few
//! lines are a crate of their own.

/// The maximum error, in microseconds, from which on a clock counts as not synchronised. The kernel lets this error grow up
/// to this value while no source of time corrects the clock. systemd uses the same limit.
const LARGEST_ERROR: i64 = 16_000_000;

/// Whether the kernel's clock is synchronised. Returns an error if the process may not ask.
pub fn is_synchronised() -> std::io::Result<bool> {
    // SAFETY: timex consists of plain numbers, for which zeros are valid. With modes of 0 the call only reads.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer refers to a complete timex that lives during the call.
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
        // the result depends on the machine
        let answer = super::is_synchronised();
        assert!(answer.is_ok() || answer.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied));
    }
}
