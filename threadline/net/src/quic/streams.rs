//! Which frame goes over which stream: SENDs of a thread over a stream of their own, everything else over the control
//! stream; deliveries come over streams that the relay opens.

use std::collections::HashMap;
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};
use threadline::v2::ThreadTag;
use threadline::v2::blob::lane_of;
use threadline::v2::frames::{Frame, FrameBuffer, FramePhase};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// A thread stream without messages ends after this.
const STREAM_IDLE: Duration = Duration::from_mins(1);
/// Thread streams at once: the relay lets 64 in, one of which is the control stream.
const MAX_STREAMS: usize = 60;
/// Frames that may wait for one stream; a relay that lets more pile up is gone.
const QUEUE: usize = 256;
/// A relay that does not read for this long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why frames are carried no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// This side stopped.
    Stopped,
    /// The connection is gone, or the relay does not read.
    Lost,
    /// The relay sent what is no frame.
    BadFrame,
}

/// What a stream's task reports.
enum Report {
    /// The connection is of no use any more.
    End(Ended),
    /// No message may follow on this stream.
    Closed(ThreadTag, u64),
}

struct ThreadStream {
    number: u64,
    queue: mpsc::Sender<Frame>,
}

pub(super) async fn carry(
    connection: &Connection,
    mut outgoing: mpsc::Receiver<Frame>,
    incoming: mpsc::Sender<Frame>,
) -> Ended {
    let Ok((send, receive)) = connection.open_bi().await else { return Ended::Lost };
    let mut tasks = JoinSet::new();
    let (reports_tx, mut reports) = mpsc::channel(QUEUE);
    let (control, control_queue) = mpsc::channel(QUEUE);
    tasks.spawn(end_with(reports_tx.clone(), write_control(send, control_queue)));
    tasks.spawn(end_with(reports_tx.clone(), read(receive, incoming.clone(), None)));
    let mut threads: HashMap<ThreadTag, ThreadStream> = HashMap::new();
    let mut count = 0;
    loop {
        while tasks.try_join_next().is_some() {}
        tokio::select! {
            frame = outgoing.recv() => {
                let Some(frame) = frame else { return Ended::Stopped };
                let tag = match &frame {
                    Frame::Send(send) => send.tt,
                    Frame::BlobData(data) => Some(lane_of(&data.id)),
                    Frame::BlobEnd(end) => Some(lane_of(&end.hash)),
                    _ => None,
                };
                let written = match tag {
                    Some(tag) => {
                        if !threads.contains_key(&tag) {
                            if threads.len() >= MAX_STREAMS {
                                // An idle thread ends its stream by itself; one more message can wait for that here.
                                threads.retain(|_, thread| thread.queue.capacity() < QUEUE);
                            }
                            count += 1;
                            let (queue, frames) = mpsc::channel(QUEUE);
                            let closed = reports_tx.clone();
                            let (connection, incoming) = (connection.clone(), incoming.clone());
                            tasks.spawn(async move {
                                thread(&connection, frames, incoming, (tag, count), &closed).await;
                            });
                            threads.insert(tag, ThreadStream { number: count, queue });
                        }
                        threads.get(&tag).is_some_and(|thread| thread.queue.try_send(frame).is_ok())
                    }
                    None => control.try_send(frame).is_ok(),
                };
                if !written {
                    return Ended::Lost;
                }
            }
            stream = connection.accept_uni() => {
                let Ok(stream) = stream else { return Ended::Lost };
                let (reports, incoming) = (reports_tx.clone(), incoming.clone());
                tasks.spawn(async move {
                    // A delivery stream may end as it likes; only what is no frame ends the connection.
                    if read(stream, incoming, None).await == Ended::BadFrame {
                        let _ = reports.send(Report::End(Ended::BadFrame)).await;
                    }
                });
            }
            report = reports.recv() => match report {
                Some(Report::End(ended)) => return ended,
                Some(Report::Closed(tag, number)) => {
                    threads.retain(|known, thread| *known != tag || thread.number != number);
                }
                None => return Ended::Lost,
            },
        }
    }
}

async fn end_with(reports: mpsc::Sender<Report>, task: impl Future<Output = Ended>) {
    let ended = task.await;
    let _ = reports.send(Report::End(ended)).await;
}

async fn write_control(mut send: SendStream, mut frames: mpsc::Receiver<Frame>) -> Ended {
    while let Some(frame) = frames.recv().await {
        if !write(&mut send, &frame).await {
            return Ended::Lost;
        }
    }
    Ended::Stopped
}

async fn write(send: &mut SendStream, frame: &Frame) -> bool {
    let bytes = frame.encode();
    matches!(tokio::time::timeout(WRITE_TIMEOUT, send.write_all(&bytes)).await, Ok(Ok(())))
}

/// One thread's stream, both directions, until it is idle or the relay ends it.
async fn thread(
    connection: &Connection,
    mut frames: mpsc::Receiver<Frame>,
    incoming: mpsc::Sender<Frame>,
    (tag, number): (ThreadTag, u64),
    reports: &mpsc::Sender<Report>,
) {
    let Ok((mut send, receive)) = connection.open_bi().await else {
        let _ = reports.send(Report::End(Ended::Lost)).await;
        return;
    };
    let (refused_tx, mut refused) = mpsc::channel(1);
    let reading = read(receive, incoming, Some(refused_tx));
    tokio::pin!(reading);
    let mut sending = true;
    let ended = loop {
        tokio::select! {
            frame = frames.recv(), if sending => {
                if let Some(frame) = frame {
                    if !write(&mut send, &frame).await {
                        break Ended::Lost;
                    }
                } else {
                    let _ = send.finish();
                    sending = false;
                }
            }
            // What follows a refused message must not overtake it: the next one begins a new stream.
            Some(()) = refused.recv(), if sending => {
                let _ = reports.send(Report::Closed(tag, number)).await;
            }
            ended = &mut reading => break ended,
            () = tokio::time::sleep(STREAM_IDLE), if sending => {
                let _ = reports.send(Report::Closed(tag, number)).await;
            }
        }
    };
    let _ = reports.send(Report::Closed(tag, number)).await;
    if ended == Ended::BadFrame {
        let _ = reports.send(Report::End(ended)).await;
    }
}

/// Passes on the frames of a stream until it ends.
async fn read(
    mut stream: RecvStream,
    incoming: mpsc::Sender<Frame>,
    refused: Option<mpsc::Sender<()>>,
) -> Ended {
    let mut buffer = FrameBuffer::default();
    loop {
        match stream.read_chunk(64 * 1024, true).await {
            Ok(Some(chunk)) => buffer.extend(&chunk.bytes),
            Ok(None) | Err(_) => return Ended::Lost,
        }
        loop {
            let frame = match buffer.next(FramePhase::Open) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) if error.is_fatal() => return Ended::BadFrame,
                Err(_) => continue,
            };
            if let (Some(refused), Frame::Rejected(answer)) = (&refused, &frame)
                && answer.code.is_retryable()
            {
                let _ = refused.try_send(());
            }
            if incoming.send(frame).await.is_err() {
                return Ended::Stopped;
            }
        }
    }
}
