//! One SQLite file: opening, migrations, a writer thread with group commit, a few readers.

use std::path::{Path, PathBuf};
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

/// How much a commit survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// `synchronous=FULL`: a commit survives power loss.
    Full,
    /// `synchronous=NORMAL`: a commit survives the death of the process, not power loss.
    Normal,
}

/// One numbered step; its number is its place in the list, from 1. A step that has shipped never changes.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// SQL batch, run in one transaction together with the version number.
    pub sql: &'static str,
}

/// What to open and how.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    path: PathBuf,
    migrations: &'static [Migration],
    durability: Durability,
    busy_timeout: Duration,
    readers: usize,
    step_back: bool,
    writer_queue: usize,
}

/// Niceness of readers that step back: a tenth of the weight of other threads on a busy core.
const STEP_BACK: i32 = 10;
/// Instructions of SQLite's machine after which such a reader lets others go first, some 30 µs.
const STEP: i32 = 500;

impl OpenOptions {
    /// Options with the defaults: `busy_timeout` 5 s, two readers, 1,024 queued writes.
    pub fn new(path: impl Into<PathBuf>, migrations: &'static [Migration], durability: Durability) -> Self {
        Self {
            path: path.into(),
            migrations,
            durability,
            busy_timeout: Duration::from_secs(5),
            readers: 2,
            step_back: false,
            writer_queue: 1024,
        }
    }

    /// Number of read connections (at least one).
    #[must_use]
    pub fn readers(mut self, readers: usize) -> Self {
        self.readers = readers.max(1);
        self
    }

    /// Readers leave the processor to the other threads of the process, again and again during a query: for long
    /// queries beside something that must answer at once.
    #[must_use]
    pub fn readers_step_back(mut self) -> Self {
        self.step_back = true;
        self
    }
}

/// Whether the last process that had the file open closed it in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UncleanStop(pub bool);

/// Why a database cannot be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// SQLite refused.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// The file was made by a newer version; it is left untouched.
    #[error(
        "{path} has schema version {found}; this build knows {known}. Update instar, or use the newer one"
    )]
    SchemaTooNew {
        /// The file.
        path: PathBuf,
        /// Version in the file.
        found: u32,
        /// Newest version this build can read.
        known: u32,
    },
    /// The file is not a database or is damaged.
    #[error("{path} is damaged: {detail}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What the check said.
        detail: String,
    },
    /// A connection or thread could not be started.
    #[error("cannot open {path}: {detail}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The reason.
        detail: String,
    },
    /// The group commit failed; none of its operations took place.
    #[error("commit failed, nothing was stored: {0}")]
    Commit(GroupFailure),
    /// The database was closed.
    #[error("the database is closed")]
    Closed,
}

impl DatabaseError {
    /// Whether the disk is full or the file system refuses writes, so that a retry may help later.
    pub fn is_storage_full(&self) -> bool {
        match self {
            Self::Sqlite(error) => error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull),
            Self::Commit(failure) => failure.code == Some(rusqlite::ErrorCode::DiskFull),
            _ => false,
        }
    }
}

/// Why the transaction that several operations shared did not take place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupFailure {
    reason: String,
    code: Option<rusqlite::ErrorCode>,
}

impl GroupFailure {
    /// The SQLite error in `error` or below it, and the words of `error`.
    fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        let code = std::iter::successors(Some(error), |e| e.source()).find_map(|e| {
            let sqlite = e.downcast_ref::<rusqlite::Error>().and_then(rusqlite::Error::sqlite_error_code);
            sqlite.or_else(|| e.downcast_ref::<rusqlite::ffi::Error>().map(|e| e.code))
        });
        Self { reason: error.to_string(), code }
    }
}

impl std::fmt::Display for GroupFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

/// A handle to one database; cheap to clone. The last handle to go closes the file.
#[derive(Clone)]
pub struct Database {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

struct Shared {
    path: PathBuf,
    writer: Mutex<Option<mpsc::Sender<Write>>>,
    readers: Mutex<Option<std_mpsc::Sender<Read>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    unclean: bool,
}

type Read = Box<dyn FnOnce(&Connection) + Send>;
/// Runs one operation, or refuses it where there is no transaction.
type Apply = Box<dyn FnOnce(Result<&Connection, GroupFailure>) -> Applied + Send>;
/// Releases the caller once the transaction it ran in has ended.
type Answer = Box<dyn FnOnce(Result<(), GroupFailure>) + Send>;

/// An operation that was run or refused.
struct Applied {
    answer: Answer,
    failure: Option<GroupFailure>,
}

enum Write {
    Apply(Apply),
    Checkpoint(oneshot::Sender<()>),
}

/// Most operations that share one transaction.
const GROUP: usize = 256;

impl Database {
    /// Opens or creates the file (mode 0600), checks it, migrates it and starts its threads.
    ///
    /// Blocks. A file of a newer schema is refused untouched; a damaged one is reported as
    /// [`DatabaseError::Corrupt`] and left where it is.
    pub fn open(options: OpenOptions) -> Result<Self, DatabaseError> {
        let path = options.path.clone();
        let unclean = leftover_wal(&path);
        create_private(&path)?;
        let mut writer = connect(&options, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        check(&writer, &path)?;
        migrate(&mut writer, &options)?;

        let (write_tx, write_rx) = mpsc::channel(options.writer_queue);
        let mut threads = vec![spawn(&path, "writer", move || run_writer(writer, write_rx))?];
        let (read_tx, read_rx) = std_mpsc::channel::<Read>();
        let read_rx = Arc::new(Mutex::new(read_rx));
        for _ in 0..options.readers {
            let mut connection = connect(&options, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
            connection.pragma_update(None, "query_only", true)?;
            let jobs = Arc::clone(&read_rx);
            let aside = options.step_back;
            threads.push(spawn(&path, "reader", move || {
                if aside && let Err(error) = step_back(&mut connection) {
                    tracing::debug!(%error, "a reader goes on without pauses");
                }
                run_reader(&connection, &jobs);
            })?);
        }
        Ok(Self {
            shared: Arc::new(Shared {
                path,
                writer: Mutex::new(Some(write_tx)),
                readers: Mutex::new(Some(read_tx)),
                threads: Mutex::new(threads),
                unclean,
            }),
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Whether the last process died without closing the file.
    pub fn unclean_stop(&self) -> UncleanStop {
        UncleanStop(self.shared.unclean)
    }

    /// Runs `operation` on the writer thread and returns after its transaction is committed.
    ///
    /// Operations that wait together are committed together (at most 256). An operation that fails is rolled
    /// back alone, unless SQLite itself gave up the whole transaction, as it may on a full disk: then none of them
    /// took place. When the queue is full the caller waits.
    pub async fn write<T, E, F>(&self, operation: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DatabaseError> + std::error::Error + Send + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    {
        let sender = self.writer().ok_or(DatabaseError::Closed)?;
        let (apply, answer) = package(operation);
        sender.send(Write::Apply(apply)).await.map_err(|_| DatabaseError::Closed)?;
        answer.await.map_err(|_| DatabaseError::Closed)?
    }

    /// [`Database::write`] for threads outside the async runtime.
    pub fn write_blocking<T, E, F>(&self, operation: F) -> Result<T, DatabaseError>
    where
        T: Send + 'static,
        E: Into<DatabaseError> + Send + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    {
        let sender = self.writer().ok_or(DatabaseError::Closed)?;
        let (apply, answer) = package(move |c: &Connection| operation(c).map_err(Into::into));
        sender.blocking_send(Write::Apply(apply)).map_err(|_| DatabaseError::Closed)?;
        answer.blocking_recv().map_err(|_| DatabaseError::Closed)?
    }

    /// Runs `query` on a read connection. It sees everything committed before the call.
    pub async fn read<T, E, F>(&self, query: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DatabaseError> + Send + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    {
        let (tx, rx) = oneshot::channel();
        self.submit_read(Box::new(move |c| drop(tx.send(query(c)))))?;
        rx.await.map_err(|_| DatabaseError::Closed)?
    }

    /// [`Database::read`] for threads outside the async runtime.
    pub fn read_blocking<T, E, F>(&self, query: F) -> Result<T, DatabaseError>
    where
        T: Send + 'static,
        E: Into<DatabaseError> + Send + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    {
        let (tx, rx) = oneshot::channel();
        self.submit_read(Box::new(move |c| drop(tx.send(query(c).map_err(Into::into)))))?;
        rx.blocking_recv().map_err(|_| DatabaseError::Closed)?
    }

    /// Moves the write-ahead log into the main file.
    pub async fn checkpoint(&self) -> Result<(), DatabaseError> {
        let sender = self.writer().ok_or(DatabaseError::Closed)?;
        let (tx, rx) = oneshot::channel();
        sender.send(Write::Checkpoint(tx)).await.map_err(|_| DatabaseError::Closed)?;
        rx.await.map_err(|_| DatabaseError::Closed)
    }

    /// Finishes queued work, checkpoints and closes every connection. Blocks; later calls fail with `Closed`.
    pub fn close(&self) {
        self.shared.close();
    }

    fn writer(&self) -> Option<mpsc::Sender<Write>> {
        self.shared.writer.lock().ok()?.clone()
    }

    fn submit_read(&self, job: Read) -> Result<(), DatabaseError> {
        let readers = self.shared.readers.lock().map_err(|_| DatabaseError::Closed)?;
        readers.as_ref().ok_or(DatabaseError::Closed)?.send(job).map_err(|_| DatabaseError::Closed)
    }
}

impl Shared {
    fn close(&self) {
        if let Ok(mut readers) = self.readers.lock() {
            readers.take();
        }
        if let Ok(mut writer) = self.writer.lock() {
            writer.take();
        }
        let threads = self.threads.lock().map(|mut t| std::mem::take(&mut *t)).unwrap_or_default();
        let me = std::thread::current().id();
        // The writer goes last: its connection is the one that may still have to checkpoint.
        for thread in threads.into_iter().rev() {
            if thread.thread().id() != me {
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.close();
    }
}

fn package<T, E, F>(operation: F) -> (Apply, oneshot::Receiver<Result<T, E>>)
where
    T: Send + 'static,
    E: From<DatabaseError> + std::error::Error + Send + 'static,
    F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
{
    let (tx, rx) = oneshot::channel();
    let apply: Apply = Box::new(move |connection| {
        let result = match connection {
            Ok(connection) => in_savepoint(connection, operation),
            Err(failure) => Err(DatabaseError::Commit(failure).into()),
        };
        let failure = result.as_ref().err().map(|error| GroupFailure::of(error));
        let answer: Answer = Box::new(move |ended: Result<(), GroupFailure>| {
            let result = match ended {
                Ok(()) => result,
                Err(failure) => result.and(Err(DatabaseError::Commit(failure).into())),
            };
            drop(tx.send(result));
        });
        Applied { answer, failure }
    });
    (apply, rx)
}

fn in_savepoint<T, E, F>(connection: &Connection, operation: F) -> Result<T, E>
where
    E: From<DatabaseError>,
    F: FnOnce(&Connection) -> Result<T, E>,
{
    let sql = |result: rusqlite::Result<()>| result.map_err(|e| E::from(DatabaseError::from(e)));
    sql(connection.execute_batch("SAVEPOINT op"))?;
    let result = operation(connection).and_then(|value| {
        sql(connection.execute_batch("RELEASE op"))?;
        Ok(value)
    });
    if result.is_err() {
        undo(connection);
    }
    result
}

/// Undoes the operation that failed, or the whole transaction where it alone cannot be undone. Does nothing where SQLite
/// has given up the transaction already.
fn undo(connection: &Connection) {
    if connection.is_autocommit() {
        return;
    }
    if let Err(error) = connection.execute_batch("ROLLBACK TO op; RELEASE op") {
        tracing::error!(%error, "an operation could not be undone alone");
        let _ = connection.execute_batch("ROLLBACK");
    }
}

fn run_writer(mut connection: Connection, mut jobs: mpsc::Receiver<Write>) {
    let mut group = Vec::with_capacity(GROUP);
    while jobs.blocking_recv_many(&mut group, GROUP) > 0 {
        let mut checkpoints = Vec::new();
        let mut operations = Vec::new();
        for job in group.drain(..) {
            match job {
                Write::Apply(apply) => operations.push(apply),
                Write::Checkpoint(done) => checkpoints.push(done),
            }
        }
        if !operations.is_empty() {
            commit_group(&mut connection, operations);
        }
        if !checkpoints.is_empty() {
            let _ = connection.pragma_update(None, "wal_checkpoint", "TRUNCATE");
            for done in checkpoints {
                // Nobody may be waiting any more.
                let _ = done.send(());
            }
        }
    }
    let _ = connection.pragma_update(None, "wal_checkpoint", "TRUNCATE");
}

fn commit_group(connection: &mut Connection, operations: Vec<Apply>) {
    let transaction = match connection.transaction_with_behavior(TransactionBehavior::Immediate) {
        Ok(transaction) => transaction,
        Err(error) => {
            let failure = GroupFailure::of(&error);
            tracing::error!(reason = %failure, "no write transaction could be begun");
            for apply in operations {
                (apply(Err(failure.clone())).answer)(Ok(()));
            }
            return;
        }
    };
    let mut answers: Vec<Answer> = Vec::with_capacity(operations.len());
    let mut lost = None;
    for apply in operations {
        let place = lost.clone().map_or(Ok(&*transaction), Err);
        let applied = run_guarded(&transaction, place, apply);
        // What would run now would be committed by itself, while its caller hears that the group failed.
        if lost.is_none() && transaction.is_autocommit() {
            let failure = applied.as_ref().and_then(|a| a.failure.clone()).unwrap_or_else(|| GroupFailure {
                reason: "the transaction was given up".to_owned(),
                code: None,
            });
            tracing::error!(reason = %failure, "SQLite gave up a transaction");
            lost = Some(failure);
        }
        answers.extend(applied.map(|a| a.answer));
    }
    let ended = match lost {
        None => transaction.commit().map_err(|error| GroupFailure::of(&error)),
        Some(failure) => Err(failure),
    };
    for answer in answers {
        answer(ended.clone());
    }
}

/// Runs one operation; a panic in it undoes that operation alone and its caller hears `Closed`.
fn run_guarded(
    connection: &Connection,
    place: Result<&Connection, GroupFailure>,
    apply: Apply,
) -> Option<Applied> {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| apply(place)));
    if outcome.is_err() {
        undo(connection);
    }
    outcome.ok()
}

/// Has queries of the calling thread run in small steps, between which whoever waits for the core goes first. A low
/// weight alone does not do that: Linux looks who waits for the end of a time slice at its ticks, up to 4 ms apart.
fn step_back(connection: &mut Connection) -> Result<(), DatabaseError> {
    connection.progress_handler(
        STEP,
        Some(|| {
            std::thread::yield_now();
            false
        }),
    )?;
    // Of this thread alone. Where it is not allowed, the reader is as good as it was.
    if let Err(error) = rustix::process::nice(STEP_BACK) {
        tracing::debug!(%error, "the niceness of a reader stays as it is");
    }
    Ok(())
}

fn run_reader(connection: &Connection, jobs: &Mutex<std_mpsc::Receiver<Read>>) {
    loop {
        let job = {
            let Ok(jobs) = jobs.lock() else { return };
            jobs.recv()
        };
        let Ok(job) = job else { return };
        job(connection);
    }
}

fn spawn(
    path: &Path,
    role: &str,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, DatabaseError> {
    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    std::thread::Builder::new()
        .name(format!("{stem}-{role}"))
        .spawn(body)
        .map_err(|e| DatabaseError::Open { path: path.to_owned(), detail: e.to_string() })
}

fn leftover_wal(path: &Path) -> bool {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    std::fs::metadata(PathBuf::from(wal)).is_ok_and(|m| m.len() > 0)
}

fn create_private(path: &Path) -> Result<(), DatabaseError> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(|e| DatabaseError::Open { path: path.to_owned(), detail: e.to_string() })
}

fn connect(options: &OpenOptions, flags: OpenFlags) -> Result<Connection, DatabaseError> {
    let connection = Connection::open_with_flags(&options.path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(options.busy_timeout)?;
    connection.set_prepared_statement_cache_capacity(128);
    let apply = || -> rusqlite::Result<()> {
        connection.pragma_update(None, "journal_mode", "WAL")?;
        let synchronous = match options.durability {
            Durability::Full => "FULL",
            Durability::Normal => "NORMAL",
        };
        connection.pragma_update(None, "synchronous", synchronous)?;
        connection.pragma_update(None, "foreign_keys", true)
    };
    apply().map_err(|error| corrupt_or(error, &options.path))?;
    Ok(connection)
}

/// Runs `PRAGMA quick_check` on a file that another process may have open. Blocks; changes nothing.
pub fn quick_check(path: &Path) -> Result<(), DatabaseError> {
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.busy_timeout(Duration::from_secs(5))?;
    check(&connection, path)
}

fn check(connection: &Connection, path: &Path) -> Result<(), DatabaseError> {
    let verdict: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|error| corrupt_or(error, path))?;
    if verdict == "ok" {
        return Ok(());
    }
    Err(DatabaseError::Corrupt { path: path.to_owned(), detail: verdict })
}

fn migrate(connection: &mut Connection, options: &OpenOptions) -> Result<(), DatabaseError> {
    let found: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let known = options.migrations.len() as u32;
    if found > known {
        return Err(DatabaseError::SchemaTooNew { path: options.path.clone(), found, known });
    }
    for (version, migration) in (1u32..).zip(options.migrations).skip(found as usize) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
        transaction.execute_batch(migration.sql)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}

fn corrupt_or(error: rusqlite::Error, path: &Path) -> DatabaseError {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match error.sqlite_error_code() {
        Some(DatabaseCorrupt | NotADatabase) => {
            DatabaseError::Corrupt { path: path.to_owned(), detail: error.to_string() }
        }
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIGRATIONS: &[Migration] = &[
        Migration { sql: "CREATE TABLE t(x INTEGER NOT NULL UNIQUE) STRICT" },
        Migration { sql: "ALTER TABLE t ADD COLUMN y TEXT" },
    ];

    fn open(path: &Path, migrations: &'static [Migration]) -> Result<Database, DatabaseError> {
        Database::open(OpenOptions::new(path, migrations, Durability::Full))
    }

    fn count(db: &Database) -> i64 {
        db.read_blocking(|c| c.query_row("SELECT count(*) FROM t", [], |r| r.get(0))).expect("count")
    }

    #[test]
    fn an_operation_that_fails_is_undone_alone() {
        let dir = tempfile::tempdir().expect("dir");
        let db = open(&dir.path().join("a.sqlite"), MIGRATIONS).expect("open");
        db.write_blocking(|c| c.execute("INSERT INTO t(x) VALUES (1)", [])).expect("first");
        let failed = db.write_blocking(|c| {
            c.execute("INSERT INTO t(x) VALUES (2)", [])?;
            c.execute("INSERT INTO t(x) VALUES (1)", [])
        });
        assert!(failed.is_err());
        db.write_blocking(|c| c.execute("INSERT INTO t(x) VALUES (3)", [])).expect("third");
        assert_eq!(count(&db), 2);
    }

    #[test]
    fn a_panicking_operation_leaves_the_writer_alive() {
        let dir = tempfile::tempdir().expect("dir");
        let db = open(&dir.path().join("a.sqlite"), MIGRATIONS).expect("open");
        let failed: Result<(), DatabaseError> = db.write_blocking(|c| -> rusqlite::Result<()> {
            c.execute("INSERT INTO t(x) VALUES (1)", [])?;
            panic!("on purpose")
        });
        assert!(failed.is_err());
        assert_eq!(count(&db), 0);
        db.write_blocking(|c| c.execute("INSERT INTO t(x) VALUES (1)", [])).expect("alive");
    }

    #[test]
    fn migrations_run_once_and_a_newer_file_is_refused_untouched() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("a.sqlite");
        let old = open(&path, &MIGRATIONS[..1]).expect("first version");
        old.write_blocking(|c| c.execute("INSERT INTO t(x) VALUES (1)", [])).expect("insert");
        old.close();
        let new = open(&path, MIGRATIONS).expect("second version");
        assert_eq!(count(&new), 1);
        new.close();
        let before = std::fs::read(&path).expect("read");
        assert!(matches!(
            open(&path, &MIGRATIONS[..1]),
            Err(DatabaseError::SchemaTooNew { found: 2, known: 1, .. })
        ));
        assert_eq!(std::fs::read(&path).expect("read"), before);
    }

    #[test]
    fn a_damaged_file_is_named_and_kept() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("a.sqlite");
        std::fs::write(&path, vec![0x55; 8192]).expect("write");
        assert!(matches!(open(&path, MIGRATIONS), Err(DatabaseError::Corrupt { .. })));
        assert_eq!(std::fs::metadata(&path).expect("kept").len(), 8192);
    }

    #[tokio::test]
    async fn operations_of_a_transaction_that_sqlite_gave_up_are_all_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let db = open(&dir.path().join("a.sqlite"), MIGRATIONS).expect("open");
        let insert = |x: i64, bytes: usize| {
            let y = "y".repeat(bytes);
            db.write(move |c| {
                c.execute("INSERT INTO t(x, y) VALUES (?1, ?2)", (x, y)).map_err(DatabaseError::from)
            })
        };
        let limit = |pages: i64| {
            db.write(move |c| c.pragma_update(None, "max_page_count", pages).map_err(DatabaseError::from))
        };
        limit(8).await.expect("a small disk");
        let (begun, has_begun) = oneshot::channel();
        let (go_on, goes_on) = std_mpsc::channel::<()>();
        let writer = db.clone();
        let busy = tokio::spawn(async move {
            let wait = move |_: &Connection| {
                let _ = begun.send(());
                let _ = goes_on.recv();
                Ok::<_, DatabaseError>(())
            };
            writer.write(wait).await
        });
        has_begun.await.expect("the writer is busy");
        let group = async { tokio::join!(insert(1, 1), insert(2, 1 << 20), insert(3, 1)) };
        let release = async { go_on.send(()).expect("waiting") };
        let ((before, full, after), ()) = tokio::join!(group, release);
        busy.await.expect("task").expect("the first");
        let full = full.expect_err("no room");
        assert!(matches!(full, DatabaseError::Sqlite(_)) && full.is_storage_full(), "its own error: {full}");
        for error in [before.expect_err("given up"), after.expect_err("given up")] {
            assert!(matches!(error, DatabaseError::Commit(_)) && error.is_storage_full(), "{error}");
        }
        let kept = || async {
            let query = "SELECT coalesce(sum(x), 0) FROM t";
            db.read(move |c| c.query_row(query, [], |r| r.get::<_, i64>(0)).map_err(DatabaseError::from))
                .await
        };
        assert_eq!(kept().await.expect("rows"), 0, "what was reported as failed is not there");
        limit(1_000).await.expect("a larger disk");
        insert(4, 1 << 20).await.expect("room");
        assert_eq!(kept().await.expect("rows"), 4);
    }

    #[tokio::test]
    async fn waiting_operations_are_all_committed_and_visible_after_the_answer() {
        let dir = tempfile::tempdir().expect("dir");
        let db = open(&dir.path().join("a.sqlite"), MIGRATIONS).expect("open");
        let tasks: Vec<_> = (0..500)
            .map(|x| {
                let db = db.clone();
                tokio::spawn(async move {
                    db.write(move |c| {
                        c.execute("INSERT INTO t(x) VALUES (?1)", [x]).map_err(DatabaseError::from)
                    })
                    .await
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("task").expect("insert");
        }
        let n: i64 = db
            .read(|c| c.query_row("SELECT count(*) FROM t", [], |r| r.get(0)).map_err(DatabaseError::from))
            .await
            .expect("count");
        assert_eq!(n, 500);
    }
}
