//! Random changes to inputs, the same for the same seed. Pure.

/// SplitMix64: good enough to spread mutations, and the same everywhere.
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`; 0 when there is none.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.number() % (limit.max(1) as u64)).unwrap_or(0)
    }
}

/// No input grows beyond this, in bytes: enough to show that time or memory grows faster than the input.
const LONGEST: usize = 64 << 10;
/// Numbers on which decoders stumble.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

/// Makes inputs out of seeds.
pub struct Mutator {
    random: Random,
    seeds: Vec<Vec<u8>>,
    words: &'static [&'static str],
}

impl Mutator {
    /// `words` are put in now and then: what the format is made of.
    pub fn new(seed: u64, mut seeds: Vec<Vec<u8>>, words: &'static [&'static str]) -> Self {
        seeds.push(Vec::new());
        Self { random: Random::new(seed), seeds, words }
    }

    /// The next input: a seed with some changes, or noise.
    pub fn next_input(&mut self) -> Vec<u8> {
        let at = self.random.below(self.seeds.len());
        let mut input = self.seeds[at].clone();
        // Few changes mostly, so that the input gets far into the decoder.
        let most = 1 << self.random.below(5);
        let changes = 1 + self.random.below(most);
        for _ in 0..changes {
            self.change(&mut input);
        }
        input.truncate(LONGEST);
        input
    }

    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.random.below(length + 1);
        let longest = if self.random.below(4) == 0 { length - start } else { (length - start).min(16) };
        start..start + self.random.below(longest + 1)
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.random.below(input.len() + 1);
        match self.random.below(12) {
            0 | 1 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << self.random.below(8);
                }
            }
            2 | 3 => {
                let new = self.random.number().to_le_bytes()[0];
                match input.get_mut(at) {
                    Some(byte) => *byte = new,
                    None => input.push(new),
                }
            }
            4 => {
                let range = self.range(input.len());
                input.drain(range);
            }
            5 => {
                let range = self.range(input.len());
                let copy = input[range].to_vec();
                input.splice(at..at, copy);
            }
            6 => self.number(input, at),
            7 | 8 => {
                let word = self.words.get(self.random.below(self.words.len())).copied().unwrap_or_default();
                if self.random.below(2) == 0 {
                    input.splice(at..at, word.bytes());
                } else {
                    let end = (at + word.len()).min(input.len());
                    input.splice(at..end, word.bytes());
                }
            }
            9 => {
                let other = self.seeds[self.random.below(self.seeds.len())].clone();
                let range = self.range(other.len());
                input.splice(at..at, other[range].iter().copied());
            }
            10 => {
                let text = self.random.number().to_string();
                input.splice(at..at, text.into_bytes());
            }
            // The same again and again: depth, and costs that grow faster than the input.
            _ => {
                if self.random.below(8) == 0 {
                    let range = self.range(input.len());
                    let part = input[range].to_vec();
                    let room = LONGEST.saturating_sub(input.len()) / part.len().max(1);
                    let most = room.min(1 << self.random.below(17));
                    let times = self.random.below(most + 1);
                    input.splice(at..at, part.repeat(times));
                }
            }
        }
    }

    fn number(&mut self, input: &mut [u8], at: usize) {
        let edge = EDGES[self.random.below(EDGES.len())];
        let edge = edge.wrapping_add(self.random.below(3) as u64).wrapping_sub(1);
        let width = 1 << self.random.below(4);
        let bytes = if self.random.below(2) == 0 { edge.to_le_bytes() } else { edge.to_be_bytes() };
        let bytes = if self.random.below(2) == 0 { &bytes[..width] } else { &bytes[8 - width..] };
        for (to, from) in input.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }
}
