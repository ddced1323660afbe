//! The composition root: the only file that knows every room.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::config::Settings;
use crate::service::logging::{Logging, LoggingError};
use crate::service::signals::{Signal, Signals};
use crate::supervise::Exit;

/// Why the gateway did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The data directory cannot be created or written.
    #[error("cannot use {} as data directory: {source}", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A task or thread ended while the gateway should run.
    #[error(transparent)]
    Ended(#[from] Exit),
    /// The log cannot be started.
    #[error(transparent)]
    Logging(#[from] LoggingError),
    /// The system refuses threads, timers or signals.
    #[error("the system refuses what every program needs: {0}")]
    System(#[from] io::Error),
}

impl AppError {
    /// The exit code, as sysexits.h names them.
    pub fn exit_code(&self) -> u8 {
        match self {
            AppError::Listen { .. } => 69,
            AppError::DataDir { .. } => 73,
            AppError::Ended(_) => 70,
            AppError::Logging(_) | AppError::System(_) => 71,
        }
    }
}

/// Runs the gateway until it is told to stop. `config_path` is read again on SIGHUP.
pub fn run(settings: Settings, config_path: Option<&Path>) -> Result<(), AppError> {
    let _logging = Logging::init(&settings.log.level)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        let file = config_path.map_or_else(|| "none".into(), |path| path.display().to_string());
        tracing::info!(config = file, "gateway {} is up", settings.gateway.id);
        while signals.next().await == Signal::Hangup {}
        tracing::info!("stopped");
        Ok(())
    })
}
