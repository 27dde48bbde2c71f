//! What a sealed machine with one process refuses by design: every function here fails with ENOSYS and does nothing else.

#![cfg_attr(donjon_guest, expect(unsafe_code, reason = "C names"))]
// UNSAFETY: exports symbols; nothing is dereferenced.

use crate::errno::set;
use core::ffi::c_int;
use donjon_os::errno::Errno;

macro_rules! refused {
    ($($name:ident)*) => {$(
        #[doc = concat!("`", stringify!($name), "`: refused, ENOSYS.")]
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub extern "C" fn $name() -> c_int {
            set(Errno::ENOSYS);
            -1
        }
    )*};
}

// Other processes and programs.
refused! { fork vfork clone execv execve execvp execvpe execveat fexecve execl execlp execle wait waitpid waitid wait4 pidfd_open pidfd_getpid pidfd_send_signal daemon setsid setpgid getpgid getsid }
// Other processes' memory, tracing, profiling.
refused! { ptrace process_vm_readv process_vm_writev perf_event_open }
// The machine, its file systems and its name.
refused! { mount umount umount2 chroot pivot_root reboot swapon swapoff sethostname setdomainname init_module delete_module unshare setns }
// Users and capabilities.
refused! { setuid setgid seteuid setegid setreuid setregid setresuid setresgid setgroups capset }
// Scheduling of other threads, priorities.
refused! { sched_setaffinity sched_setscheduler setpriority nice }
// Interrupting timers and signals that wait.
refused! { alarm setitimer timer_create timer_settime timer_delete sigsuspend sigtimedwait sigwaitinfo sigwait signalfd sigqueue }
// Memory that stays in place or moves.
refused! { mremap mlock mlock2 munlock mlockall munlockall mincore remap_file_pages shmget shmat shmdt shm_open shm_unlink }
// Watching files.
refused! { inotify_init inotify_init1 inotify_add_watch inotify_rm_watch fanotify_init }

macro_rules! refused_directly {
    ($($name:ident)*) => {$(
        #[doc = concat!("`", stringify!($name), "`: refused; returns the error itself, as POSIX has it.")]
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub extern "C" fn $name() -> c_int {
            Errno::ENOSYS.0
        }
    )*};
}

refused_directly! {
    posix_spawn posix_spawnp pidfd_spawnp
    posix_spawn_file_actions_init posix_spawn_file_actions_destroy posix_spawn_file_actions_adddup2
    posix_spawn_file_actions_addopen posix_spawn_file_actions_addclose
    posix_spawn_file_actions_addchdir posix_spawn_file_actions_addchdir_np
    posix_spawnattr_init posix_spawnattr_destroy posix_spawnattr_setflags posix_spawnattr_setsigdefault
    posix_spawnattr_setsigmask posix_spawnattr_setpgroup posix_spawnattr_setcgroup_np
    pthread_cancel pthread_setschedparam pthread_getschedparam pthread_setaffinity_np pthread_getaffinity_np
}

/// `system`: refused; -1 with ENOSYS.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn system() -> c_int {
    set(Errno::ENOSYS);
    -1
}

/// `pthread_atfork`: nothing will fork, so there is nothing to run.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn pthread_atfork() -> c_int {
    0
}

/// `sbrk`: there is no data segment whose end could move; -1 as a pointer, with ENOMEM, which is how it says so.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn sbrk() -> isize {
    set(Errno::ENOMEM);
    -1
}
