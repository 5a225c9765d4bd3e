package devstack

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// slots is how many a Redis Cluster has.
const slots = 16384

// ClusterOptions say what a Cluster consists of.
type ClusterOptions struct {
	Dir         string        // for the servers' files
	Primaries   int           // default 3; fewer than three cannot agree on a fail-over
	Replicas    int           // of each primary; default none
	NodeTimeout time.Duration // after which a silent server counts as lost; default 1 s
	Words       []string      // further ones for each redis-server
}

// A RedisCluster is a set of servers over which the slots are spread evenly, in order.
// A slot whose server is away leaves the others in use.
type RedisCluster struct {
	Servers []*RedisServer // the primaries, then the replicas: that of primary 0, of primary 1, …
}

// StartRedisCluster starts a Cluster and waits until every server says that it is ready: 2 s
// to 4 s.
func StartRedisCluster(ctx context.Context, o ClusterOptions) (*RedisCluster, error) {
	if o.Primaries == 0 {
		o.Primaries = 3
	}
	if o.NodeTimeout == 0 {
		o.NodeTimeout = time.Second
	}
	c := &RedisCluster{}
	if err := c.start(ctx, o); err != nil {
		return nil, errors.Join(fmt.Errorf("start a Redis Cluster: %w", err), c.Stop())
	}
	return c, nil
}

func (c *RedisCluster) start(ctx context.Context, o ClusterOptions) error {
	buses := make([]string, o.Primaries*(1+o.Replicas))
	for i := range buses {
		bus, err := FreeAddress()
		if err != nil {
			return err
		}
		_, buses[i], _ = strings.Cut(bus, ":")
		words := append([]string{
			"--cluster-enabled", "yes", "--cluster-port", buses[i], "--cluster-config-file", "nodes.conf",
			"--cluster-node-timeout", strconv.FormatInt(o.NodeTimeout.Milliseconds(), 10),
			"--cluster-require-full-coverage", "no", "--cluster-replica-validity-factor", "0", "--cluster-allow-replica-migration", "no",
		}, o.Words...)
		r, err := StartRedisServer(ctx, o.Dir, words...)
		if r != nil {
			c.Servers = append(c.Servers, r)
		}
		if err != nil {
			return err
		}
	}
	if err := c.meet(ctx, o.Primaries, buses); err != nil {
		return err
	}
	for i, r := range c.Servers[o.Primaries:] {
		id, err := c.Servers[i%o.Primaries].Do(ctx, "CLUSTER", "MYID")
		if err != nil {
			return err
		}
		err = poll(ctx, func(ctx context.Context) error { // until the replica has heard of it
			_, err := r.Do(ctx, "CLUSTER", "REPLICATE", id)
			return err
		})
		if err != nil {
			return err
		}
	}
	return c.await(ctx)
}

// meet gives the primaries their slots and makes all servers known to each other.
func (c *RedisCluster) meet(ctx context.Context, primaries int, buses []string) error {
	for i, r := range c.Servers {
		commands := [][]string{{"CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i + 1)}}
		if i < primaries {
			first, last := i*slots/primaries, (i+1)*slots/primaries-1
			commands = append(commands, []string{"CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(first), strconv.Itoa(last)})
		}
		if i > 0 {
			host, port, _ := strings.Cut(c.Servers[0].Address, ":")
			commands = append(commands, []string{"CLUSTER", "MEET", host, port, buses[0]})
		}
		for _, words := range commands {
			if _, err := r.Do(ctx, words...); err != nil {
				return err
			}
		}
	}
	return nil
}

// await returns when every server that runs finds the Cluster whole, and every replica
// among them follows its primary.
func (c *RedisCluster) await(ctx context.Context) error {
	return poll(ctx, func(ctx context.Context) error {
		for _, r := range c.Servers {
			select {
			case <-r.Process.Done():
				continue
			default:
			}
			info, err := r.Do(ctx, "CLUSTER", "INFO")
			if err != nil {
				return err
			}
			for _, want := range []string{"cluster_state:ok", fmt.Sprintf("cluster_slots_ok:%d", slots), fmt.Sprintf("cluster_known_nodes:%d", len(c.Servers))} {
				if !strings.Contains(info+"\n", want+"\n") {
					return fmt.Errorf("%s does not say %s", r.Address, want)
				}
			}
			if info, err = r.Do(ctx, "INFO", "replication"); err != nil {
				return err
			}
			if strings.Contains(info, "role:slave") && !strings.Contains(info, "master_link_status:up") {
				return fmt.Errorf("the replica %s does not follow yet", r.Address)
			}
		}
		return nil
	})
}

// Addresses returns those of all servers.
func (c *RedisCluster) Addresses() []string { return addresses(c.Servers) }

// Owner returns the server that has the slot of a key, as a server that runs sees it.
func (c *RedisCluster) Owner(ctx context.Context, key string) (*RedisServer, error) {
	var errs []error
	for _, r := range c.Servers {
		slot, err := r.Do(ctx, "CLUSTER", "KEYSLOT", key)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		number, err := strconv.Atoi(slot)
		if err != nil {
			return nil, fmt.Errorf("read the slot of %s: %w", key, err)
		}
		return c.ownerOf(ctx, r, number)
	}
	return nil, errors.Join(errs...)
}

// ownerOf reads who has a slot from what a server knows.
func (c *RedisCluster) ownerOf(ctx context.Context, asked *RedisServer, slot int) (*RedisServer, error) {
	nodes, err := asked.Do(ctx, "CLUSTER", "NODES")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(nodes) {
		fields := strings.Fields(line)
		if len(fields) < 9 || !strings.Contains(fields[2], "master") {
			continue
		}
		for _, held := range fields[8:] {
			first, last, ranged := strings.Cut(held, "-")
			if !ranged {
				last = first
			}
			from, errFrom := strconv.Atoi(first)
			to, errTo := strconv.Atoi(last)
			if errFrom != nil || errTo != nil || slot < from || slot > to {
				continue
			}
			address, _, _ := strings.Cut(fields[1], "@")
			for _, r := range c.Servers {
				if r.Address == address {
					return r, nil
				}
			}
		}
	}
	return nil, fmt.Errorf("nobody has slot %d", slot)
}

// MoveSlot moves the slot of a key, and the keys in it ten at a time, to another primary,
// as a resharding does. Calls of between are made after each step: before the first keys,
// and after each ten; nil makes none.
func (c *RedisCluster) MoveSlot(ctx context.Context, key string, to *RedisServer, between func()) error {
	if between == nil {
		between = func() {}
	}
	from, err := c.Owner(ctx, key)
	if err != nil {
		return err
	}
	slot, err := from.Do(ctx, "CLUSTER", "KEYSLOT", key)
	if err != nil {
		return err
	}
	source, errFrom := from.Do(ctx, "CLUSTER", "MYID")
	target, errTo := to.Do(ctx, "CLUSTER", "MYID")
	if err := errors.Join(errFrom, errTo); err != nil {
		return err
	}
	if _, err := to.Do(ctx, "CLUSTER", "SETSLOT", slot, "IMPORTING", source); err != nil {
		return err
	}
	if _, err := from.Do(ctx, "CLUSTER", "SETSLOT", slot, "MIGRATING", target); err != nil {
		return err
	}
	between()
	if err := c.migrate(ctx, slot, from, to, between); err != nil {
		return err
	}
	for _, r := range []*RedisServer{to, from} {
		if _, err := r.Do(ctx, "CLUSTER", "SETSLOT", slot, "NODE", target); err != nil {
			return err
		}
	}
	return nil
}

// migrate moves the keys of a slot until none is left.
func (c *RedisCluster) migrate(ctx context.Context, slot string, from, to *RedisServer, between func()) error {
	host, port, _ := strings.Cut(to.Address, ":")
	for {
		keys, err := from.Do(ctx, "CLUSTER", "GETKEYSINSLOT", slot, "10")
		if err != nil {
			return err
		}
		if keys == "" {
			return nil
		}
		words := append([]string{"MIGRATE", host, port, "", "0", "5000", "KEYS"}, strings.Split(keys, "\n")...)
		if _, err := from.Do(ctx, words...); err != nil {
			return err
		}
		between()
	}
}

// Stop ends all servers.
func (c *RedisCluster) Stop() error { return stopServers(c.Servers) }
