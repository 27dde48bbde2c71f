//! Binary floating point numbers in decimal, exactly.

/// Limbs for any `f64`: 767 digits, and one carry.
pub const LIMBS_DOUBLE: usize = 88;
/// Limbs for any x87 `long double`: 11,515 digits, and one carry.
pub const LIMBS_LONG: usize = 1282;

/// Digits per limb.
const DIGITS: i32 = 9;
const BASE: u64 = 1_000_000_000;
const POW10: [u32; 9] = [1, 10, 100, 1000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000];

/// A number `N / 10^scale`, where `N` is a whole number in base 10^9, lowest limb first.
pub struct Decimal<'a> {
    limbs: &'a mut [u32],
    used: usize,
    scale: i32,
}

impl<'a> Decimal<'a> {
    /// `mantissa * 2^exponent`; `limbs` has [`LIMBS_DOUBLE`] or [`LIMBS_LONG`].
    pub fn new(limbs: &'a mut [u32], mantissa: u64, exponent: i32) -> Self {
        let mut number = Self { limbs, used: 0, scale: 0 };
        if mantissa == 0 {
            return number;
        }
        // A negative exponent costs 5^n instead of 2^n: m / 2^n = m * 5^n / 10^n.
        let zeros = mantissa.trailing_zeros().min(exponent.min(0).unsigned_abs());
        let exponent = exponent + zeros.cast_signed();
        let mut rest = mantissa >> zeros;
        while rest > 0 {
            number.push((rest % BASE) as u32);
            rest /= BASE;
        }
        let (step, factor, base) = if exponent < 0 { (13, 1_220_703_125, 5) } else { (29, 1 << 29, 2u32) };
        let mut left = exponent.unsigned_abs();
        while left >= step {
            number.multiply(factor);
            left -= step;
        }
        if left > 0 {
            number.multiply(base.pow(left));
        }
        number.scale = -exponent.min(0);
        number
    }

    fn push(&mut self, limb: u32) {
        self.limbs[self.used] = limb;
        self.used += 1;
    }

    fn multiply(&mut self, factor: u32) {
        let mut carry = 0;
        for limb in &mut self.limbs[..self.used] {
            let product = u64::from(*limb) * u64::from(factor) + carry;
            *limb = (product % BASE) as u32;
            carry = product / BASE;
        }
        // The carry is below the factor, which may be a little above the base.
        while carry > 0 {
            self.push((carry % BASE) as u32);
            carry /= BASE;
        }
    }

    /// The power of ten of the first digit; 0 for zero.
    pub fn top(&self) -> i32 {
        match self.limbs[..self.used].last() {
            Some(limb) => (self.used as i32 - 1) * DIGITS + limb.ilog10().cast_signed() - self.scale,
            None => 0,
        }
    }

    /// Digits behind the point.
    pub fn places(&self) -> i32 {
        self.scale
    }

    /// The digit of the power `at` of ten, 0 beyond either end.
    pub fn digit(&self, at: i32) -> u8 {
        let at = at.saturating_add(self.scale);
        if at < 0 {
            return 0;
        }
        let limb = self.limbs[..self.used].get((at / DIGITS) as usize).copied().unwrap_or(0);
        (limb / POW10[(at % DIGITS) as usize] % 10) as u8
    }

    /// Rounds to a multiple of `10^last`, half to even. What was below is no longer valid.
    pub fn round(&mut self, last: i32) {
        let at = last.saturating_add(self.scale);
        if at <= 0 || at / DIGITS > self.used as i32 {
            // Nothing below, or all of it below by so much that it rounds to zero.
            return;
        }
        let half = self.digit(last - 1);
        if half < 5 || (half == 5 && self.digit(last) & 1 == 0 && !self.any_below(at - 1)) {
            return;
        }
        let mut index = (at / DIGITS) as usize;
        let mut add = POW10[(at % DIGITS) as usize];
        while add > 0 {
            if index == self.used {
                self.push(0);
            }
            let sum = self.limbs[index] + add;
            add = u32::from(u64::from(sum) >= BASE);
            self.limbs[index] = sum - add * BASE as u32;
            index += 1;
        }
    }

    /// Whether a digit below the `n`-th of `N` is not zero.
    fn any_below(&self, n: i32) -> bool {
        let (limb, digit) = ((n / DIGITS) as usize, (n % DIGITS) as usize);
        self.limbs[..limb].iter().any(|&l| l != 0)
            || self.limbs[..self.used].get(limb).is_some_and(|l| l % POW10[digit] != 0)
    }
}
