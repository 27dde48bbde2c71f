/* Writes `len` bytes to a buffer of 16: what lies behind it on the stack is the canary. */
void smash(unsigned long len) {
    volatile char buffer[16];
    for (unsigned long i = 0; i < len; i++)
        ((volatile char *)buffer)[i] = 'A';
}
