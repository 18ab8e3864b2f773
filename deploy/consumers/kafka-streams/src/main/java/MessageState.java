import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.time.DateTimeException;
import java.time.Duration;
import java.time.Instant;
import java.util.List;
import java.util.Properties;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.common.errors.SerializationException;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.errors.LogAndContinueExceptionHandler;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.JoinWindows;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.StreamJoined;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Status updates to the current state of each message, and to the orders that they may belong to.
 *
 * <p>usage: KAFKA=host:9092 STATE_DIR=/var/lib/message-state java -cp 'target/classes:target/lib/*' MessageState
 */
public final class MessageState {
    private static final Logger LOG = LoggerFactory.getLogger(MessageState.class);
    private static final Set<String> WARNINGS = ConcurrentHashMap.newKeySet();
    private static final ObjectMapper MAPPER = new ObjectMapper();
    private static final Serde<JsonNode> JSON = 
            Serdes.serdeFrom((topic, node) -> write(node), (topic, bytes) -> read(bytes));

    /** A message can belong to an order that is at most so old. */
    private static final Duration ORDER_AGE = Duration.ofHours(24);

    /** How late an update may come, after the newest record of its partition, and be joined. */
    private static final Duration GRACE = Duration.ofHours(1);

    static Topology topology() {
        var builder = new StreamsBuilder();
        var json = Consumed.with(Serdes.String(), JSON);
        builder.stream("weni.dead-letter.v1", Consumed.with(Serdes.String(), Serdes.ByteArray()))
                .process(DeadLetters::new);

        // Internal topics and stores have names, so that a changed topology finds its state again.
        // One key per message and participant: all its updates meet in one partition.
        KStream<String, JsonNode> states = builder.stream("weni.message-status.v1", json)
                .flatMapValues(MessageState::state)
                .groupBy((id, state) -> key(state), Grouped.with("by-message", Serdes.String(), JSON))
                .reduce(MessageState::higher, Materialized.<String, JsonNode, KeyValueStore<Bytes, byte[]>>as("states")
                        .withKeySerde(Serdes.String()).withValueSerde(JSON))
                .toStream();
        states.to("message-state", Produced.with(Serdes.String(), JSON));

        // A status has no order number. Recipient and time are all that both sides have, so this is a
        // guess: of two orders of one recipient within the window, both are joined.
        // Both sides get the same key. So Kafka Streams writes both again, to two topics of its own with as
        // many partitions and one partitioner: whatever the partitions of `orders` are, they meet.
        byPhone(builder.stream("orders", json)).join(
                        byPhone(states),
                        MessageState::joined,
                        JoinWindows.ofTimeDifferenceAndGrace(ORDER_AGE, GRACE).before(Duration.ZERO),
                        StreamJoined.with(Serdes.String(), JSON, JSON)
                                .withName("by-phone").withStoreName("by-phone"))
                .selectKey((phone, joined) -> joined.get("order").path("order_id").asText()
                        + " " + key(joined.get("message")))
                .to("order-message-state", Produced.with(Serdes.String(), JSON));
        return builder.build();
    }

    private static KStream<String, JsonNode> byPhone(KStream<String, JsonNode> stream) {
        return stream.filter((key, value) -> value != null && value.hasNonNull("phone"))
                .selectKey((key, value) -> phone(value.get("phone").asText()));
    }

    /** Digits only. Brazilian mobile numbers are spelt with and without a ninth digit, 9: without. */
    static String phone(String spelt) {
        return spelt.replaceAll("\\D", "").replaceFirst("^(55\\d\\d)9(\\d{8})$", "$1$2");
    }

    /** The state that an update stands for; nothing if it takes no part in the state. */
    private static List<JsonNode> state(String id, JsonNode event) {
        if (event == null) {
            return List.of();
        }
        if (event.path("schema_version").asInt() > 1) {
            warnOnce("schema_version " + event.path("schema_version") + " is newer than this consumer");
        }
        if (!event.path("event_kind").asText().equals("message_status")) {
            return List.of();
        }
        if (!event.path("status_known").asBoolean()) {
            warnOnce("status " + event.path("status") + " is unknown: no state");
        }
        if (!event.path("status_rank").isInt()) {
            return List.of();
        }
        try {
            return List.of(fields(event));
        } catch (IllegalArgumentException | DateTimeException error) {
            LOG.error("an event cannot be read, and is left out: {}", error.getMessage());
            return List.of();
        }
    }

    private static void warnOnce(String text) {
        if (WARNINGS.size() < 1000 && WARNINGS.add(text)) {
            LOG.warn(text);
        }
    }

    private static ObjectNode fields(JsonNode event) {
        var recipient = event.path("recipient");
        var group = recipient.path("type").asText().equals("group");
        var state = MAPPER.createObjectNode();
        var participant = recipient.path("participant_id").asText("");
        state.put("message_id", required(event, "message_id"));
        state.put("participant", recipient.path("participant_user_id").asText(participant));
        state.put("status", required(event, "status"));
        state.put("status_rank", event.get("status_rank").asInt());
        var time = event.path("occurred_at").asText(required(event, "received_at"));
        state.put("happened_at", Instant.parse(time).toString());
        state.set("phone", recipient.get(group ? "participant_id" : "id"));
        state.put("event_id", required(event, "event_id"));
        return state;
    }

    private static String required(JsonNode event, String name) {
        if (!event.path(name).isTextual()) {
            throw new IllegalArgumentException("no " + name);
        }
        return event.get(name).asText();
    }

    /** The message id, in groups with the participant. */
    private static String key(JsonNode state) {
        var participant = state.get("participant").asText();
        return state.get("message_id").asText() + (participant.isEmpty() ? "" : " " + participant);
    }

    private static JsonNode higher(JsonNode old, JsonNode update) {
        int rank = Integer.compare(update.get("status_rank").asInt(), old.get("status_rank").asInt());
        int time = happenedAt(update).compareTo(happenedAt(old));
        return rank > 0 || rank == 0 && time > 0 ? update : old;
    }

    private static Instant happenedAt(JsonNode state) {
        return Instant.parse(state.get("happened_at").asText());
    }

    private static JsonNode joined(JsonNode order, JsonNode message) {
        return MAPPER.createObjectNode().<ObjectNode>set("order", order).set("message", message);
    }

    private static byte[] write(JsonNode node) {
        return node == null ? null : node.toString().getBytes(StandardCharsets.UTF_8);
    }

    private static JsonNode read(byte[] bytes) {
        try {
            return bytes == null ? null : MAPPER.readTree(bytes);
        } catch (IOException error) {
            throw new SerializationException("not JSON", error);
        }
    }

    /** Says what is missing from the events. */
    private static final class DeadLetters implements Processor<String, byte[], Void, Void> {
        @Override
        public void process(Record<String, byte[]> letter) {
            var reason = letter.headers().lastHeader("reason");
            LOG.warn("dead letter {}: {}", letter.key(),
                    reason == null ? "no reason" : new String(reason.value(), StandardCharsets.UTF_8));
        }
    }

    public static void main(String[] arguments) throws InterruptedException {
        var settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, "message-state-streams");
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, System.getenv("KAFKA"));
        settings.put(StreamsConfig.STATE_DIR_CONFIG, System.getenv("STATE_DIR"));
        // Reads with read_committed, too.
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        // A record that is not JSON is logged with its place and left out.
        settings.put(StreamsConfig.DESERIALIZATION_EXCEPTION_HANDLER_CLASS_CONFIG,
                LogAndContinueExceptionHandler.class);
        // A member that was killed gives its partitions up after this time.
        settings.put(StreamsConfig.consumerPrefix("session.timeout.ms"), 10_000);

        var streams = new KafkaStreams(topology(), settings);
        var ended = new CountDownLatch(1);
        streams.setStateListener((now, before) -> {
            if (now == KafkaStreams.State.ERROR || now == KafkaStreams.State.NOT_RUNNING) {
                ended.countDown();
            }
        });
        Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
        streams.start();
        ended.await();
        if (streams.state() == KafkaStreams.State.ERROR) {
            System.exit(1); // a supervisor starts it again
        }
    }
}
