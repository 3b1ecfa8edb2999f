//! Chooses the checkpoints that are no longer needed. Reads and removes none itself.

/// Those of the checkpoints, which are sorted, newest first, that can be removed. The newest `keep` valid
/// ones stay, and all stay while there are fewer. One that is neither verified nor damaged can't be judged,
/// and stays.
pub(super) fn removable(
    names: &[String],
    keep: usize,
    is_verified: impl Fn(&str) -> bool,
    is_damaged: impl Fn(&str) -> bool,
) -> Vec<&String> {
    let mut kept_valid = 0;
    let mut removable = Vec::new();
    for name in names {
        if kept_valid == keep {
            // Its content does not matter, only whether it can be judged.
            let is_removable = is_verified(name) || is_damaged(name);
            removable.extend(is_removable.then_some(name));
        } else if is_verified(name) {
            kept_valid += 1;
        } else if is_damaged(name) {
            removable.push(name);
        }
    }
    if kept_valid < keep { Vec::new() } else { removable }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every list of up to six checkpoints, each valid, damaged or unreadable.
    #[test]
    fn the_newest_valid_ones_stay_and_so_does_what_can_not_be_judged() {
        for count in 0..=6u32 {
            for case in 0..3usize.pow(count) {
                let names: Vec<String> = (0..count).map(|place| place.to_string()).collect();
                let kind = |name: &str| case / 3usize.pow(name.parse().unwrap()) % 3;
                let valid: Vec<&String> = names.iter().filter(|name| kind(name) == 0).collect();
                for keep in 1..=3 {
                    let removed = removable(&names, keep, |name| kind(name) == 0, |name| kind(name) == 1);
                    assert!(removed.iter().all(|name| kind(name) != 2));
                    assert!(valid.iter().take(keep).all(|name| !removed.contains(name)));
                    assert!(valid.len() >= keep || removed.is_empty());
                    assert!(valid.len() < keep || valid.iter().skip(keep).all(|name| removed.contains(name)));
                }
            }
        }
    }
}
