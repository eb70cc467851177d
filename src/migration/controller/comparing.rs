//! Comparisons under the controller: one at a time, and the last one has a say in the next switch.

use super::{Controller, Verifying};
use crate::cutover::verdict::Verification;
use crate::error::{Error, Result, Side};
use crate::migration::handle::{Answer, VerifyRequest};
use crate::migration::record::Intent;
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
        if request.repair {
            let _ = answer.send(refused(
                "--repair is not in this version",
                "compare without it; `crossfade abort` and `start` copy everything anew",
            ));
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
        let (select, map) = self.chosen(active);
        let options = verify::VerifyOptions {
            rounds: request.rounds.unwrap_or(self.config.verify.rounds),
            sample: request.sample.or(self.config.verify.sample),
            padded: self.record.intent == Intent::Mirror,
            select,
            map,
            ..verify::VerifyOptions::default()
        };
        let task = tokio::spawn(async move { verify::compare(&a, &b, options).await });
        self.verifying = Some(Verifying { task, answer });
    }

    pub(super) fn verified(&mut self, outcome: Result<verify::Report>) {
        let Some(verifying) = self.verifying.take() else { return };
        if let Ok(report) = &outcome {
            self.verification = Verification::Differences(report.difference_count);
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
