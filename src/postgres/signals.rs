//! Every signal is blocked before a thread exists, so that no handler of PostgreSQL ever runs on a network thread:
//! new threads inherit the mask. Main gets the server's own mask back afterwards.

/// Blocks all signals for the calling thread and those that it starts.
pub(super) fn block_all() {
    // SAFETY: both calls only write to the set on our stack; they cannot fail with these arguments.
    unsafe {
        let mut all = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
    }
}
