#![no_std]
pub mod c;
