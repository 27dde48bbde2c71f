#![cfg_attr(donjon_guest, no_std)]
