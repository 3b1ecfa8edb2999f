//! Whether what was probed is as expected. Probes nothing itself.

use scenarios::Probed;

use super::unmet::Unmet;

/// Whether all that was probed for this expectation holds.
pub(super) fn check_probes(probes: &[Probed], index: usize) -> Result<(), Unmet> {
    // One for each command, each answer and each exit: all of them must hold.
    let mut probes = probes.iter().filter(|probe| probe.expectation == index).peekable();
    if probes.peek().is_none() {
        return Err(Unmet::NotProbed);
    }
    match probes.find(|probe| !probe.held) {
        Some(probe) => Err(Unmet::FailedProbe { found: probe.found.clone() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use scenarios::ProbeKind;

    use super::*;

    #[test]
    fn each_probe_of_an_expectation_must_hold_and_there_must_be_one() {
        let probe = |(expectation, held): (usize, bool)| Probed {
            expectation,
            kind: ProbeKind::Answers,
            probe: String::new(),
            held,
            found: "418".into(),
        };
        let check = |probes: &[(usize, bool)]| {
            check_probes(&probes.iter().copied().map(probe).collect::<Vec<_>>(), 1)
        };
        assert!(check(&[(1, true), (0, false), (1, true)]).is_ok());
        for failed in [&[(1, true), (1, false)][..], &[(1, false), (1, true)]] {
            assert!(matches!(check(failed), Err(Unmet::FailedProbe { .. })), "{failed:?}");
        }
        assert!(matches!(check(&[(0, true)]), Err(Unmet::NotProbed)));
    }
}
