//! Any sequence of steps, against a model.

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<u8>),
    Together(Vec<Vec<u8>>),
    Settle(prop::sample::Index),
    Recycle,
    Stop,
    Crash { torn: Vec<usize>, mask: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let payload = || (any::<u8>(), 0usize..900).prop_map(|(byte, len)| vec![byte; len]);
    prop_oneof![
        8 => payload().prop_map(Step::Append),
        3 => prop::collection::vec(payload(), 1..8).prop_map(Step::Together),
        3 => any::<prop::sample::Index>().prop_map(Step::Settle),
        2 => Just(Step::Recycle),
        1 => Just(Step::Stop),
        2 => (prop::collection::vec(0usize..900, 0..8), any::<u64>())
            .prop_map(|(torn, mask)| Step::Crash { torn, mask }),
    ]
}

/// What a journal should hold: a list that forgets only what is settled and recycled.
#[derive(Debug, Default)]
struct Model {
    records: Vec<(Position, Vec<u8>)>,
    committed: Position,
}

impl Model {
    fn check(&self, journal: &Journal) {
        // The keeper recycles beside this: only what was read without it can be compared.
        let (oldest, found) = loop {
            let oldest = journal.oldest();
            let found = records(journal, Position::default());
            if journal.oldest() == oldest {
                break (oldest, found);
            }
        };
        let kept: Vec<_> = self.records.iter().filter(|(at, _)| *at >= oldest).cloned().collect();
        let told = |records: &[(Position, Vec<u8>)]| -> Vec<_> {
            records.iter().map(|(at, payload)| format!("{at} {}", payload.len())).collect()
        };
        assert_eq!(told(&found), told(&kept), "oldest {oldest}, end {}", journal.durable());
        assert_eq!(found, kept);
        let pending = self.records.iter().filter(|(at, _)| *at >= self.committed).count();
        assert_eq!(journal.pending(), pending as u64, "{:?}", self.committed);
        assert_eq!(kept.iter().filter(|(at, _)| *at >= self.committed).count(), pending);
        assert_eq!((corrupt_bytes(journal), errors(journal, "read")), (0, 0));
    }

    /// What a crash left of a batch that was never acknowledged is taken over.
    fn learn(&mut self, journal: &Journal, torn: &[usize]) {
        let last = self.records.last().map_or(Position::default(), |(at, _)| at.next());
        for (at, payload) in records(journal, last) {
            assert!(torn.contains(&payload.len()) && payload.iter().all(|byte| *byte == 0xA5));
            self.records.push((at, payload));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn it_behaves_like_a_list_that_forgets_only_what_is_settled(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let directory = directory();
        let mut journal = open(&directory);
        journal.reset_committed(journal.committed());
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Append(payload) => {
                    let position = append(&journal, &payload).unwrap();
                    model.records.push((position, payload));
                }
                Step::Together(payloads) => {
                    append_together(&journal, &payloads);
                    let last = model.records.last().map_or(Position::default(), |(at, _)| at.next());
                    let added = records(&journal, last);
                    let expected = [vec![b"first".to_vec()], payloads].concat();
                    prop_assert!(added.iter().map(|(_, payload)| payload).eq(&expected));
                    model.records.extend(added);
                }
                Step::Settle(index) if !model.records.is_empty() => {
                    let position = index.get(&model.records).0.next();
                    model.committed = model.committed.max(position);
                    journal.advance_committed(checkpoint(&journal, model.committed));
                }
                Step::Settle(_) => {}
                Step::Recycle => {
                    journal.write_checkpoint().unwrap();
                    journal.shared().recycle().unwrap();
                }
                Step::Stop => {
                    journal.close();
                    drop(journal);
                    journal = open(&directory);
                    journal.reset_committed(model.committed);
                }
                Step::Crash { torn, mask } => {
                    let next = journal.durable();
                    drop(journal);
                    let mut batch = WriteBatch::new(next, Vec::new());
                    for len in &torn {
                        batch.push(&counter(), |out| out.resize(out.len() + len, 0xA5));
                    }
                    if next.index() > 0 {
                        tear(&directory, &mut batch, 256, mask);
                    }
                    journal = open(&directory);
                    model.learn(&journal, &torn);
                    journal.reset_committed(model.committed);
                }
            }
            model.check(&journal);
        }
    }
}
