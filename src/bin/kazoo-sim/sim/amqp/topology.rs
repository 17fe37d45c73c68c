//! Exchanges and queues, declared as Kazoo declares them.

use lapin::{
    Channel, Connection, ExchangeKind,
    options::{BasicConsumeOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};

use super::{super::options::QueueStyle, QueueSpec, short};

/// Kazoo's exchanges that a recording touches; none is durable.
const EXCHANGES: [(&str, ExchangeKind); 8] = [
    ("kapps", ExchangeKind::Topic),
    ("targeted", ExchangeKind::Direct),
    ("callctl", ExchangeKind::Direct),
    ("callevt", ExchangeKind::Topic),
    ("switch", ExchangeKind::Topic),
    ("configuration", ExchangeKind::Topic),
    ("sysconf", ExchangeKind::Topic),
    ("notifications", ExchangeKind::Topic),
];

pub async fn declare_exchanges(channel: &Channel) -> anyhow::Result<()> {
    for (name, kind) in EXCHANGES {
        let options = ExchangeDeclareOptions::default();
        channel
            .exchange_declare(name.into(), kind, options, FieldTable::default())
            .await?;
    }
    Ok(())
}

pub async fn consume(channel: &Channel, queue: &QueueSpec, style: QueueStyle) -> anyhow::Result<lapin::Consumer> {
    let mut arguments = FieldTable::default();
    if !queue.private {
        arguments.insert("x-max-length".into(), AMQPValue::ShortInt(100));
        arguments.insert("x-message-ttl".into(), AMQPValue::LongInt(60_000));
    }
    let options = QueueDeclareOptions {
        durable: style == QueueStyle::Durable && !queue.private,
        auto_delete: true,
        exclusive: queue.private,
        ..QueueDeclareOptions::default()
    };
    channel.queue_declare(short(&queue.name)?, options, arguments).await?;
    for (exchange, key) in &queue.binds {
        let options = QueueBindOptions::default();
        channel
            .queue_bind(
                short(&queue.name)?,
                (*exchange).into(),
                short(key)?,
                options,
                FieldTable::default(),
            )
            .await?;
    }
    let options = BasicConsumeOptions {
        no_ack: true,
        exclusive: !queue.shared,
        ..BasicConsumeOptions::default()
    };
    Ok(channel
        .basic_consume(short(&queue.name)?, "".into(), options, FieldTable::default())
        .await?)
}

/// On a channel of its own: a refusal there must not take the consumers with it.
pub async fn rebind(connection: &Connection, on: bool, queue: &str, exchange: &str, key: &str) -> anyhow::Result<()> {
    let channel = connection.create_channel().await?;
    let (queue, exchange, key) = (short(queue)?, short(exchange)?, short(key)?);
    if on {
        channel
            .queue_bind(queue, exchange, key, QueueBindOptions::default(), FieldTable::default())
            .await?;
    } else {
        channel
            .queue_unbind(queue, exchange, key, FieldTable::default())
            .await?;
    }
    channel.close(200, "done".into()).await?;
    Ok(())
}
