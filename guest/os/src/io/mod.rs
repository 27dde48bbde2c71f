//! Pipes, event counters, timers as files, and waiting for several of them.

pub mod epoll;
pub mod eventfd;
pub mod pipe;
pub mod poll;
pub mod ring;
pub mod timerfd;
