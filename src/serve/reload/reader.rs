//! Reads files that may hang, such as those of a network file system that is away.

use std::{thread, time::Duration};

use tokio::{
    sync::oneshot::{self, Receiver, error::TryRecvError},
    time::timeout,
};

/// Reads on its own thread, because the end of the runtime waits for blocking tasks. One thread at
/// a time: otherwise a file that hangs would cost a thread every two seconds.
pub(super) struct BackgroundReader<T> {
    pub(super) timeout: Duration,
    hanging: Option<Receiver<T>>,
}

impl<T: Send + 'static> BackgroundReader<T> {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, hanging: None }
    }

    /// The result of `read`. Fails if that takes too long, or while an earlier one hangs, whose result is
    /// then discarded.
    pub(super) async fn read(
        &mut self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, String> {
        let hangs = || {
            let seconds = self.timeout.as_secs();
            format!("reading the files takes longer than {seconds} s; look at the file system")
        };
        if let Some(hanging) = &mut self.hanging
            && matches!(hanging.try_recv(), Err(TryRecvError::Empty))
        {
            return Err(hangs());
        }
        self.hanging = None;
        let (done, mut result) = oneshot::channel();
        thread::Builder::new()
            .name("reload".to_owned())
            // The receiver is gone if the edge has stopped.
            .spawn(move || drop(done.send(read())))
            .map_err(|error| format!("no thread can be started to read files: {error}"))?;
        match timeout(self.timeout, &mut result).await {
            Ok(read) => read.map_err(|_| "the thread that reads files panicked".to_owned()),
            Err(_) => {
                self.hanging = Some(result);
                Err(hangs())
            }
        }
    }
}
