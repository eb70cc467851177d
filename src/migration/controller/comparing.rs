//! Comparisons under the controller: one at a time, and the last one has a say in the next switch.

use super::{Controller, Verifying};
use crate::cutover::verdict::Verification;
use crate::error::{Error, Result, Side};
use crate::migration::handle::{Answer, VerifyRequest};
use crate::migration::record::Intent;
use crate::migration::repair;
use crate::migration::status::Phase;
use crate::verify;

impl Controller {
    pub(super) fn verify(&mut self, request: &VerifyRequest, answer: Answer<verify::Report>) {
        let refused = |what: &str, remedy: &str| Err(Error::new(Side::Gateway, what).remedy(remedy));
        let active = self.machine.active();
        let (Some(a), Some(b)) = (self.endpoint(active).cloned(), self.endpoint(active.other()).cloned())
        else {
            let _ = answer.send(refused(
                "no destination is configured",
                "name one in [destination] or with --destination",
            ));
            return;
        };
        if self.verifying.is_some() {
            let _ = answer.send(refused("a comparison is under way", "wait for it to end"));
            return;
        }
        if matches!(
            self.machine.phase(),
            Phase::Snapshot | Phase::CatchingUp | Phase::CuttingOver | Phase::RollingBack
        ) && !self.machine.switching()
        {
            let _ = answer.send(refused(
                "the copy is not complete yet",
                "wait until it is mirroring (`crossfade status --wait mirroring`)",
            ));
            return;
        }
        let repair = match (&self.running, self.machine.phase()) {
            _ if !request.repair => None,
            (Some(running), Phase::Mirroring | Phase::CutOver) => Some(running.mirror.clone()),
            _ => {
                let _ = answer.send(refused(
                    "there is no live mirror that could copy what differs",
                    "`crossfade start` or `crossfade resume`, and wait until it is mirroring",
                ));
                return;
            }
        };
        let (select, map) = self.chosen(active);
        let options = verify::VerifyOptions {
            rounds: request.rounds.unwrap_or(self.config.verify.rounds),
            sample: request.sample.or(self.config.verify.sample),
            padded: self.record.intent == Intent::Mirror,
            select,
            map,
            ..verify::VerifyOptions::default()
        };
        let policy = self.config.snapshot.on_existing_key;
        let task = tokio::spawn(async move {
            let Some(mirror) = repair else { return verify::compare(&a, &b, options).await };
            let listed = options.listed;
            let all = verify::VerifyOptions { listed: usize::MAX, ..options.clone() };
            let mut report = verify::compare(&a, &b, all).await?;
            repair::run(&mirror, &a, &b, policy, options, &mut report).await?;
            report.differences.truncate(listed);
            Ok(report)
        });
        self.verifying = Some(Verifying { task, answer });
    }

    pub(super) fn verified(&mut self, outcome: Result<verify::Report>) {
        let Some(verifying) = self.verifying.take() else { return };
        if let Ok(report) = &outcome {
            self.verification = Verification::Differences(report.left.unwrap_or(report.difference_count));
            tracing::info!(
                compared = report.compared,
                differences = report.difference_count,
                seconds = report.seconds,
                "compared the servers"
            );
        }
        let _ = verifying.answer.send(outcome);
    }
}
