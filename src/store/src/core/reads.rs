//! Reads that must be fresh: a round of heartbeats tells the leader that it still leads, then everything
//! up to the commit index of that moment has to be applied here.

use super::{Core, Output};

/// Reads share a round of heartbeats; so many rounds may be under way.
const READ_ROUNDS: usize = 4;
/// A round that was not answered is asked for again after so many ticks: messages get lost.
const READ_AGAIN: u64 = 4;

/// Reads that share one question to the leader.
pub(super) struct Round<R> {
    pub(super) context: u64,
    asked: u64,
    expires: u64,
    /// Known once the leader has answered.
    index: Option<u64>,
    tokens: Vec<R>,
}

impl<T, R> Core<T, R> {
    /// Asks for a revision that contains all that was committed before.
    pub(crate) fn read(&mut self, token: R) {
        self.new_reads.push((self.ticks + self.settings.patience, token));
    }

    /// Takes waiting reads out.
    pub(crate) fn take_reads(&mut self) -> Vec<R> {
        let rounds = self.rounds.drain(..).flat_map(|round| round.tokens);
        let mut tokens: Vec<R> = rounds.collect();
        tokens.extend(self.new_reads.drain(..).map(|(_, token)| token));
        tokens
    }

    pub(super) fn begin_round(&mut self) {
        if self.new_reads.is_empty() || self.rounds.len() >= READ_ROUNDS {
            return;
        }
        let context = self.next_context;
        self.next_context = self.next_context.wrapping_add(1);
        let expires = self.new_reads.iter().map(|(expires, _)| *expires).max().unwrap_or(self.ticks);
        let tokens = self.new_reads.drain(..).map(|(_, token)| token).collect();
        self.rounds.push(Round { context, asked: self.ticks, expires, index: None, tokens });
        self.ask(context);
    }

    fn ask(&mut self, context: u64) {
        let mut bytes = self.settings.id.to_le_bytes().to_vec();
        bytes.extend_from_slice(&context.to_le_bytes());
        self.raw.read_index(bytes);
    }

    pub(super) fn read_known(&mut self, bytes: &[u8], index: u64) {
        for round in &mut self.rounds {
            if bytes.strip_prefix(&self.settings.id.to_le_bytes()) == Some(&round.context.to_le_bytes()) {
                round.index = Some(index);
            }
        }
    }

    pub(super) fn answer_reads(&mut self, out: &mut Output<T, R>) {
        let (applied, revision) = (self.state.meta.applied, self.state.meta.revision);
        for round in self.rounds.extract_if(.., |round| round.index.is_some_and(|index| index <= applied)) {
            out.reads.extend(round.tokens.into_iter().map(|token| (token, Ok(revision))));
        }
    }

    pub(super) fn give_up_reads(&mut self, out: &mut Output<T, R>) {
        let now = self.ticks;
        for round in self.rounds.extract_if(.., |round| round.expires <= now) {
            out.reads.extend(round.tokens.into_iter().map(|token| (token, Err(()))));
        }
        for (_, token) in self.new_reads.extract_if(.., |(expires, _)| *expires <= now) {
            out.reads.push((token, Err(())));
        }
        let mut again = Vec::new();
        for round in &mut self.rounds {
            if round.index.is_none() && round.asked + READ_AGAIN <= now {
                round.asked = now;
                again.push(round.context);
            }
        }
        for context in again {
            self.ask(context);
        }
    }
}
