//! From verdicts, one after the other, to what the line does with the parts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::verdict::{FaultReason, Verdict};

/// What the line is to do with a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Actuation {
    /// No output moves. A line that accepts by an energised output lets no part through on this.
    #[default]
    Nothing,
    /// The part goes on: the only thing that energises PASS.
    Accept,
    /// The part is ejected.
    Reject,
    /// The line stops; the machine keeps it stopped until a person has looked.
    Hold,
}

impl Actuation {
    /// The word on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Actuation::Nothing => "nothing",
            Actuation::Accept => "accept",
            Actuation::Reject => "reject",
            Actuation::Hold => "hold",
        }
    }
}

/// What happens to a part that could not be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFault {
    /// It is ejected.
    #[default]
    Reject,
    /// The line stops.
    Hold,
}

/// `n` of the last `of` frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FailIf {
    /// How many must fail.
    pub n: u32,
    /// Of how many, this one among them; at most 32.
    pub of: u32,
}

/// What a line does with verdicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LineRules {
    /// When a part is rejected: several frames show the same part where a camera runs free.
    pub fail_if: FailIf,
    /// The line stops at this many bad frames in a row; `None` is never.
    pub hold_after: Option<u32>,
    /// What happens to a part that could not be judged.
    pub on_fault: OnFault,
}

impl Default for LineRules {
    fn default() -> Self {
        Self { fail_if: FailIf { n: 1, of: 1 }, hold_after: None, on_fault: OnFault::Reject }
    }
}

impl LineRules {
    /// What is wrong, if anything: the key, and the words.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        let FailIf { n, of } = self.fail_if;
        if n == 0 || of > 32 || n > of {
            return Some(("fail_if", format!("n = {n}, of = {of}: n must be 1 to `of`, and `of` at most 32")));
        }
        (self.hold_after == Some(0)).then(|| ("hold_after", "0: must be at least 1; leave it out for never".to_owned()))
    }
}

/// The last verdicts of one camera.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LineState {
    /// Whether frames were bad; the last one is the lowest bit.
    bad: u32,
    /// Bad frames in a row.
    row: u32,
}

impl LineState {
    /// What to do with the next part. A frame that a camera running free lost is no part: nothing happens and nothing counts.
    pub fn next(&mut self, rules: &LineRules, verdict: Verdict, triggered: bool) -> Actuation {
        if verdict == Verdict::Fault(FaultReason::Overrun) && !triggered {
            return Actuation::Nothing;
        }
        let bad = verdict != Verdict::Pass;
        self.bad = self.bad << 1 | u32::from(bad);
        self.row = if bad { self.row.saturating_add(1) } else { 0 };
        let FailIf { n, of } = rules.fail_if;
        let reached = (self.bad & (u32::MAX >> (32 - of.clamp(1, 32)))).count_ones() >= n.max(1);
        let held = rules.hold_after.is_some_and(|after| self.row >= after);
        match verdict {
            _ if held => Actuation::Hold,
            Verdict::Fault(_) if rules.on_fault == OnFault::Hold => Actuation::Hold,
            Verdict::Pass if !reached => Actuation::Accept,
            Verdict::Fail | Verdict::Fault(_) if reached => Actuation::Reject,
            // One good frame of a part that is being rejected, or one bad frame of a part that is not rejected yet.
            _ => Actuation::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: Verdict = Verdict::Pass;
    const F: Verdict = Verdict::Fail;
    const O: Verdict = Verdict::Fault(FaultReason::Overrun);
    const D: Verdict = Verdict::Fault(FaultReason::DetectorFault);

    fn words(rules: LineRules, triggered: bool, verdicts: &[Verdict]) -> Vec<&'static str> {
        let mut state = LineState::default();
        verdicts.iter().map(|verdict| state.next(&rules, *verdict, triggered).word()).collect()
    }

    #[test]
    fn only_a_pass_is_accepted_and_a_fault_is_rejected() {
        let rules = LineRules::default();
        assert_eq!(words(rules, true, &[P, F, D, O, P]), ["accept", "reject", "reject", "reject", "accept"]);
        assert_eq!(words(rules, false, &[P, O, F, O]), ["accept", "nothing", "reject", "nothing"]);
    }

    #[test]
    fn several_frames_decide_about_one_part() {
        let rules = LineRules { fail_if: FailIf { n: 2, of: 3 }, ..LineRules::default() };
        let said = words(rules, false, &[P, F, P, F, P, P, P]);
        assert_eq!(said, ["accept", "nothing", "accept", "reject", "accept", "accept", "accept"]);
        // A frame that was lost is none of the three.
        assert_eq!(words(rules, false, &[F, O, O, F])[3], "reject");
        // While two of the last three are bad a good frame is of the same part.
        assert_eq!(words(rules, false, &[F, F, P, P]), ["nothing", "reject", "nothing", "accept"]);
    }

    #[test]
    fn the_line_stops_after_bad_parts_in_a_row_or_at_a_fault() {
        let rules = LineRules { hold_after: Some(3), ..LineRules::default() };
        assert_eq!(words(rules, true, &[F, O, F, F, P]), ["reject", "reject", "hold", "hold", "accept"]);
        let rules = LineRules { on_fault: OnFault::Hold, ..LineRules::default() };
        assert_eq!(words(rules, true, &[P, D, O, F]), ["accept", "hold", "hold", "reject"]);
        assert_eq!(words(rules, false, &[O, D]), ["nothing", "hold"]);
    }

    #[test]
    fn rules_that_cannot_be_met_are_named() {
        for (n, of) in [(0, 1), (3, 2), (1, 33)] {
            let rules = LineRules { fail_if: FailIf { n, of }, ..LineRules::default() };
            assert_eq!(rules.problem().map(|(key, _)| key), Some("fail_if"));
        }
        assert_eq!(LineRules::default().problem(), None);
        let rules = LineRules { hold_after: Some(0), ..LineRules::default() };
        assert_eq!(rules.problem().map(|(key, _)| key), Some("hold_after"));
    }
}
