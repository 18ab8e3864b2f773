import java.util.Collections;
import java.util.Comparator;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.ExecutionException;
import java.util.stream.Collectors;
import org.apache.kafka.clients.admin.AdminClient;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.ListTopicsOptions;
import org.apache.kafka.clients.admin.NewPartitionReassignment;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.common.ElectionType;
import org.apache.kafka.common.Node;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.acl.AccessControlEntry;
import org.apache.kafka.common.acl.AclBinding;
import org.apache.kafka.common.acl.AclOperation;
import org.apache.kafka.common.acl.AclPermissionType;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.quota.ClientQuotaAlteration;
import org.apache.kafka.common.quota.ClientQuotaEntity;
import org.apache.kafka.common.resource.PatternType;
import org.apache.kafka.common.resource.ResourcePattern;
import org.apache.kafka.common.resource.ResourceType;

/**
 * Does what an administrator does to a cluster.
 *
 * <p>usage: java -cp 'libs/*' Admin.java BOOTSTRAP create TOPIC PARTITIONS [KEY=VALUE...] | alter
 * TOPIC KEY=VALUE... | delete TOPIC | deny TYPE NAME USER | allow TYPE NAME USER | quota
 * BYTES_PER_SECOND|none | lead NODE
 */
public final class Admin {
    public static void main(String[] arguments) throws Exception {
        var rest = List.of(arguments).subList(3, arguments.length);
        try (var admin = AdminClient.create(Map.of("bootstrap.servers", (Object) arguments[0]))) {
            run(admin, arguments[1], arguments[2], rest);
        } catch (ExecutionException failed) {
            System.err.println(failed.getCause().getMessage());
            System.exit(1);
        }
    }

    private static void run(AdminClient admin, String command, String name, List<String> rest)
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
            case "deny" -> admin.createAcls(List.of(denial(name, rest))).all().get();
            case "allow" -> admin.deleteAcls(List.of(denial(name, rest).toFilter())).all().get();
            case "quota" -> {
                var everyone = new ClientQuotaEntity(
                        Collections.singletonMap(ClientQuotaEntity.CLIENT_ID, null));
                Double bytes = name.equals("none") ? null : Double.valueOf(name);
                var limit = new ClientQuotaAlteration.Op("producer_byte_rate", bytes);
                var change = new ClientQuotaAlteration(everyone, List.of(limit));
                admin.alterClientQuotas(List.of(change)).all().get();
            }
            case "lead" -> lead(admin, Integer.parseInt(name));
            default -> throw new IllegalArgumentException(command);
        }
    }

    /** The first of a partition's replicas is the one preferred as its leader. */
    private static void lead(AdminClient admin, int node) throws Exception {
        var names = admin.listTopics(new ListTopicsOptions().listInternal(true)).names().get();
        var orders = new HashMap<TopicPartition, Optional<NewPartitionReassignment>>();
        for (var topic : admin.describeTopics(names).allTopicNames().get().values()) {
            for (var partition : topic.partitions()) {
                var replicas = partition.replicas().stream().map(Node::id)
                        .sorted(Comparator.comparing(id -> id != node)).toList();
                orders.put(new TopicPartition(topic.name(), partition.partition()),
                        Optional.of(new NewPartitionReassignment(replicas)));
            }
        }
        admin.alterPartitionReassignments(orders).all().get();
        admin.electLeaders(ElectionType.PREFERRED, null).all().get();
    }

    private static AclBinding denial(String type, List<String> nameAndUser) {
        var name = nameAndUser.get(0);
        var isPrefix = name.endsWith("*");
        var resource = new ResourcePattern(ResourceType.fromString(type),
                isPrefix ? name.substring(0, name.length() - 1) : name,
                isPrefix ? PatternType.PREFIXED : PatternType.LITERAL);
        var entry = new AccessControlEntry("User:" + nameAndUser.get(1), "*", AclOperation.ALL,
                AclPermissionType.DENY);
        return new AclBinding(resource, entry);
    }

    private static Map<String, String> settings(List<String> pairs) {
        return pairs.stream().map(pair -> pair.split("=", 2))
                .collect(Collectors.toMap(pair -> pair[0], pair -> pair[1]));
    }
}
