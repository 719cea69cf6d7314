//! What everybody was promised, and whether they got it.

use super::*;

/// Fails unless everybody got what was promised, and nothing else. How many notifications came.
pub(super) fn check(sent: &[Vec<Sent>], heard: &[Heard]) -> Result<usize> {
    let mut by_stamp = HashMap::new();
    let mut by_channel: HashMap<(usize, u64), Vec<&Sent>> = HashMap::new();
    for sent in sent.iter().flatten() {
        let database = sent.stamp.0 % DATABASES.len();
        by_stamp.insert(sent.stamp, sent);
        by_channel.entry((database, sent.channel)).or_default().push(sent);
    }
    let mut promised = 0;
    let mut after: HashMap<Stamp, HashSet<Stamp>> = HashMap::new();
    for heard in heard {
        let who = &heard.who;
        let mut last: HashMap<usize, u64> = HashMap::new();
        let mut got = HashSet::new();
        for (stamp, channel, at) in &heard.got {
            let sent = by_stamp.get(stamp).with_context(|| format!("{who}: nobody has sent {stamp:?}"))?;
            ensure!(sent.channel == *channel, "{who}: {stamp:?} on c{channel}");
            ensure!(got.insert(*stamp), "{who}: {stamp:?} twice");
            let before = last.insert(stamp.0, stamp.1).unwrap_or(0);
            ensure!(before < stamp.1, "{who}: {stamp:?} after {before}");
            let due = heard.listens.iter().any(|l| l.channel == *channel && sent.answered > l.asked);
            let listens = heard.listens.iter().filter(|l| l.channel == *channel);
            let listens: Vec<_> = listens.map(|l| (l.asked, l.answered, l.over)).collect();
            ensure!(
                due,
                "{who}: {stamp:?} on c{channel} came at {at} and was committed at {}, before it listened: {listens:?}",
                sent.answered
            );
        }
        for pair in heard.got.windows(2) {
            after.entry(pair[0].0).or_default().insert(pair[1].0);
        }
        // From a client that was ended nothing may be missing before the last that it got.
        let end = if heard.ended {
            heard.got.iter().filter_map(|(stamp, ..)| by_stamp.get(stamp)).map(|sent| sent.began).max()
        } else {
            Some(u64::MAX)
        };
        for listened in &heard.listens {
            let until = listened.until.min(end.unwrap_or(0));
            let all = by_channel.get(&(heard.database, listened.channel)).into_iter().flatten();
            for sent in all.filter(|sent| sent.began > listened.answered && sent.answered < until) {
                promised += 1;
                ensure!(
                    got.contains(&sent.stamp),
                    "{who}: {:?} on c{} (sent at {}, committed by {}) is missing; it listened from {} to {} ({}), of {} got",
                    sent.stamp,
                    sent.channel,
                    sent.began,
                    sent.answered,
                    listened.answered,
                    listened.until,
                    listened.over,
                    heard.got.len()
                );
            }
        }
    }
    ensure!(is_one_order(&after), "not all have heard what they heard in one order");
    Ok(promised)
}

/// Whether some order of everything has all of these.
pub(super) fn is_one_order(after: &HashMap<Stamp, HashSet<Stamp>>) -> bool {
    let mut before: HashMap<Stamp, usize> = HashMap::new();
    for (first, seconds) in after {
        before.entry(*first).or_default();
        seconds.iter().for_each(|second| *before.entry(*second).or_default() += 1);
    }
    let all = before.len();
    let mut free: Vec<Stamp> =
        before.iter().filter(|(_, count)| **count == 0).map(|(stamp, _)| *stamp).collect();
    let mut seen = 0;
    while let Some(stamp) = free.pop() {
        seen += 1;
        for second in after.get(&stamp).into_iter().flatten() {
            let count = before.entry(*second).or_default();
            *count -= 1;
            if *count == 0 {
                free.push(*second);
            }
        }
    }
    seen == all
}
