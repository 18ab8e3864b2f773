import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.ExecutionException;
import java.util.stream.Collectors;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.common.config.ConfigResource;

/**
 * Creates, alters and deletes topics.
 *
 * <p>usage: java -cp 'libs/*' Topics.java BOOTSTRAP create NAME PARTITIONS [KEY=VALUE...] | alter
 * NAME KEY=VALUE... | delete NAME
 */
public final class Topics {
    public static void main(String[] arguments) throws Exception {
        var rest = List.of(arguments).subList(3, arguments.length);
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", (Object) arguments[0]))) {
            run(admin, arguments[1], arguments[2], rest);
        } catch (ExecutionException failed) {
            System.err.println(failed.getCause().getMessage());
            System.exit(1);
        }
    }

    private static void run(Admin admin, String command, String name, List<String> rest)
            throws Exception {
        switch (command) {
            case "create" -> {
                int partitions = Integer.parseInt(rest.get(0));
                // The replication factor is the broker's default: the number of nodes.
                var topic = new NewTopic(name, Optional.of(partitions), Optional.empty());
                topic.configs(settings(rest.subList(1, rest.size())));
                admin.createTopics(List.of(topic)).all().get();
            }
            case "alter" -> {
                var changes = settings(rest).entrySet().stream()
                        .map(e -> new ConfigEntry(e.getKey(), e.getValue()))
                        .map(e -> new AlterConfigOp(e, AlterConfigOp.OpType.SET))
                        .toList();
                var topic = new ConfigResource(ConfigResource.Type.TOPIC, name);
                admin.incrementalAlterConfigs(Map.of(topic, changes)).all().get();
            }
            case "delete" -> admin.deleteTopics(List.of(name)).all().get();
            default -> throw new IllegalArgumentException(command);
        }
    }

    private static Map<String, String> settings(List<String> pairs) {
        return pairs.stream().map(pair -> pair.split("=", 2))
                .collect(Collectors.toMap(pair -> pair[0], pair -> pair[1]));
    }
}
