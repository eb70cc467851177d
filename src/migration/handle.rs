//! What the rest of the program may ask of the controller.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use super::status::{Status, SwitchEntry, SwitchRequest};
use crate::cutover::Plan;
use crate::error::{Error, Result, Side};
use crate::mirror::{Limits, ThrottleRequest, Throttling};
use crate::verify;

/// What came of a request to switch. As JSON: the entry, or the plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum SwitchReply {
    /// The switch ran to an end: committed, aborted or rehearsed.
    Entry(SwitchEntry),
    /// Dry run, or postponed: what was checked and what is next.
    Plan(Plan),
}

/// How a verification shall run. The JSON body of `POST /v1/verify`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VerifyRequest {
    /// Copy what differs.
    pub repair: bool,
    /// Compare only so many keys, chosen evenly.
    pub sample: Option<u64>,
    /// How often differing keys are looked at again before they count (writes in flight look like differences).
    pub rounds: Option<u32>,
}

/// How to go on. The JSON body of `POST /v1/resume`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResumeRequest {
    /// Leave out the commands that failed on the other side and stopped the mirror.
    pub skip_failed: bool,
    /// Copy the keys of these commands anew.
    pub copy_failed: bool,
}

/// A question to the controller with the way its answer comes back.
#[derive(Debug)]
pub(super) enum Ask {
    Start(Answer<()>),
    Pause(Answer<()>),
    Resume(ResumeRequest, Answer<()>),
    Finish(Answer<()>),
    Abort(Answer<()>),
    Cutover(SwitchRequest, Answer<SwitchReply>),
    Rollback(SwitchRequest, Answer<SwitchReply>),
    Verify(VerifyRequest, Answer<verify::Report>),
}

pub(super) type Answer<T> = oneshot::Sender<Result<T>>;

/// A handle on the running migration; cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    asks: mpsc::Sender<Ask>,
    status: watch::Receiver<Status>,
    limits: Arc<Limits>,
}

impl Handle {
    pub(super) fn new(asks: mpsc::Sender<Ask>, status: watch::Receiver<Status>, limits: Arc<Limits>) -> Self {
        Self { asks, status, limits }
    }

    /// Changes how fast the copy and the mirror may go, until the gateway ends; answers what is in force now.
    pub fn throttle(&self, request: &ThrottleRequest) -> Throttling {
        self.limits.change(request);
        self.limits.status()
    }

    /// Where it stands now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Tells of every change of the status (several times a second while something moves).
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Begins to mirror.
    ///
    /// # Errors
    /// When the phase does not allow it, or a precheck fails.
    pub async fn start(&self) -> Result<()> {
        self.ask(Ask::Start).await
    }

    /// Switches the clients to the destination. An aborted switch is an answer, not an error.
    ///
    /// # Errors
    /// When the preconditions do not hold: nothing was begun, the message holds the reasons.
    pub async fn cutover(&self, request: SwitchRequest) -> Result<SwitchReply> {
        self.ask(|answer| Ask::Cutover(request, answer)).await
    }

    /// Switches the clients back to the source. See [`Handle::cutover`].
    ///
    /// # Errors
    /// As [`Handle::cutover`].
    pub async fn rollback(&self, request: SwitchRequest) -> Result<SwitchReply> {
        self.ask(|answer| Ask::Rollback(request, answer)).await
    }

    /// Compares the two servers.
    ///
    /// # Errors
    /// When a server cannot be read.
    pub async fn verify(&self, request: VerifyRequest) -> Result<verify::Report> {
        self.ask(|answer| Ask::Verify(request, answer)).await
    }

    /// Stops applying; the journal keeps receiving.
    ///
    /// # Errors
    /// When nothing is being mirrored.
    pub async fn pause(&self) -> Result<()> {
        self.ask(Ask::Pause).await
    }

    /// Goes on: after [`Handle::pause`], and after a failure whose cause was removed or is to be skipped.
    ///
    /// # Errors
    /// When nothing is paused or failed; with `skip_failed` or `copy_failed`, when it was no command that failed.
    pub async fn resume(&self, request: ResumeRequest) -> Result<()> {
        self.ask(|answer| Ask::Resume(request, answer)).await
    }

    /// Ends the migration and stays on the active side.
    ///
    /// # Errors
    /// When the phase does not allow it, or a server cannot be cleaned up.
    pub async fn finish(&self) -> Result<()> {
        self.ask(Ask::Finish).await
    }

    /// Ends the migration on the source, or lets go of a postponed switch.
    ///
    /// # Errors
    /// When the clients are on the destination (roll back first).
    pub async fn abort(&self) -> Result<()> {
        self.ask(Ask::Abort).await
    }

    async fn ask<T>(&self, ask: impl FnOnce(Answer<T>) -> Ask) -> Result<T> {
        let gone = || Error::new(Side::Gateway, "the gateway is shutting down");
        let (answer, reply) = oneshot::channel();
        self.asks.send(ask(answer)).await.map_err(|_| gone())?;
        reply.await.map_err(|_| gone())?
    }
}
