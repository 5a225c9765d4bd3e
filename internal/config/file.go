package config

// The structs of this file are the configuration as it is written. Their field
// comments are also the descriptions in the JSON Schema. A mapping never gets an
// UnmarshalYAML of its own: it would accept unknown fields in silence.

// file is the whole of tiergate.yaml.
type file struct {
	// The gRPC listener that Envoy calls: ext_authz, rate limit service, access log service, health, reflection.
	GRPC grpcSection `yaml:"grpc"`
	// The HTTP listener for operators: metrics, health, readiness, the admin API and the operators' dashboard.
	Operator operatorSection `yaml:"operator"`
	// The HTTP listener for the holders of keys, reached through Envoy: /v1/limits, /v1/usage and the dashboard.
	Customer customerSection `yaml:"customer"`
	// What is logged and how.
	Log logSection `yaml:"log"`
	// How long a stop may take.
	Shutdown shutdownSection `yaml:"shutdown"`
	// Where counts are kept.
	Store storeSection `yaml:"store"`
	// What becomes of requests while Redis is away. local: each instance goes on by itself with its share of every limit. deny: 503. allow: all pass. A tier may differ.
	OnStoreFailure string `yaml:"on_store_failure" jsonschema:"enum=local,enum=deny,enum=allow"`
	// What is counted for the dashboards and the usage API, off the way of requests.
	Usage usageSection `yaml:"usage"`
	// Which API keys there are and how requests carry them.
	Keys keysSection `yaml:"keys"`
	// Whether keys marked demo: true work. Never set it where others can reach you: the demo keys are public.
	AllowDemoKeys bool `yaml:"allow_demo_keys"`
	// What the API offers, by name. A request belongs to the resource with the longest matching path prefix, else to "default".
	Resources map[string]resourceSection `yaml:"resources"`
	// What the limits of a tier that name no resource are counted by.
	CountBy string `yaml:"count_by" jsonschema:"enum=key,enum=key_and_resource"`
	// The tiers, by name.
	Tiers map[string]tierSection `yaml:"tiers"`
	// What the backend can take of a resource from all keys together, by the resource's name. Requests beyond it are shed, those of a low priority first. A resource without is never shed.
	Capacity map[string]poolSection `yaml:"capacity,omitempty"`
	// What tokens are reserved when a request comes, and how they are settled when it is answered.
	Tokens tokensSection `yaml:"tokens"`
	// How responses describe limits.
	Headers headersSection `yaml:"headers"`
	// The rate limit service: what its requests are called.
	RateLimit rateLimitSection `yaml:"ratelimit"`
	// External authorization: what is believed that other filters say of a request.
	ExtAuthz extAuthzSection `yaml:"ext_authz"`
	// Traces, as OpenTelemetry has them.
	Tracing tracingSection `yaml:"tracing"`
}

type extAuthzSection struct {
	// Where the key ID is found in Envoy's filter metadata, of a filter that has authenticated the caller: the filter's namespace and the names of the fields down to a text, joined by dots after a colon, such as envoy.filters.http.jwt_authn:claims.sub. It stands in for the key, and a request without it is refused. Empty: believed from nobody.
	KeyID string `yaml:"key_id"`
	// Where the tier of that key is found, instead of the one on record. Empty: believed from nobody.
	Tier string `yaml:"tier"`
}

type tracingSection struct {
	// host:port of a collector that takes OTLP over gRPC. Empty: nothing is traced.
	Endpoint string `yaml:"endpoint"`
	// Whether the collector is reached in clear.
	Insecure bool `yaml:"insecure"`
	// A PEM file with the roots that the collector's certificate must lead to, relative to this file; empty: those of the system.
	CAFile string `yaml:"ca_file,omitempty"`
	// Of the calls that Envoy does not say whether to trace, the share that is.
	SampleRatio float64 `yaml:"sample_ratio" jsonschema:"minimum=0,maximum=1"`
}

type grpcSection struct {
	// host:port, or unix: and the absolute path of a socket.
	Address string `yaml:"address"`
	// The permissions of the socket, octal.
	SocketMode string `yaml:"socket_mode"`
	// The certificate of the listener and those it asks Envoy for. Without a certificate it serves in clear.
	TLS grpcTLSSection `yaml:"tls"`
	// How many connections there may be; further ones are closed at once.
	MaxConnections whole `yaml:"max_connections"`
	// How many calls may be answered at the same time; further ones get UNAVAILABLE at once.
	MaxCalls whole `yaml:"max_calls"`
	// How large a message may be, in bytes.
	MaxMessageBytes whole `yaml:"max_message_bytes"`
}

type grpcTLSSection struct {
	// A PEM file with the certificate and those between it and its root, relative to this file. Its content may change while the server runs.
	CertFile string `yaml:"cert_file,omitempty"`
	// A PEM file with the certificate's private key.
	KeyFile string `yaml:"key_file,omitempty"`
	// A PEM file with the roots that certificates of clients must lead to. With it, every client must show one.
	ClientCAFile string `yaml:"client_ca_file,omitempty"`
	// The only clients that are served, by a DNS name, URI (such as a SPIFFE ID) or common name of their certificates; none named means all.
	ClientNames []string `yaml:"client_names,omitempty"`
}

type operatorSection struct {
	// host:port. Keep it on loopback or behind a firewall.
	Address string `yaml:"address"`
	// The bearer tokens of the admin API and the operators' dashboard. Without any, both answer callers on this machine only.
	Tokens []tokenSection `yaml:"tokens,omitempty"`
}

type tokenSection struct {
	// Whose it is, as the audit log says it: letters, digits, - and _.
	Name string `yaml:"name"`
	// A file that holds the token, relative to this file.
	File string `yaml:"file,omitempty"`
	// An environment variable that holds the token.
	Env string `yaml:"env,omitempty"`
}

type customerSection struct {
	// host:port.
	Address string `yaml:"address"`
	// A file that holds the secret by which sign-ins to the dashboard are signed, and what Envoy hands back of requests without limits on tokens, relative to this file. It is the same for every instance. Without one, each makes its own: sign-ins hold for one instance and end with it, and tokens of keys without limits on them are missing in usage where another instance hears of them.
	SessionSecretFile string `yaml:"session_secret_file"`
	// An environment variable that holds that secret.
	SessionSecretEnv string `yaml:"session_secret_env"`
}

type usageSection struct {
	// How often what was counted is written to the store. It is what a killed process loses, and how old the charts are. Each key that had requests costs Redis some 50 µs in each interval.
	Interval string `yaml:"interval"`
	// How many pairs of a key and a resource are counted in one interval; further ones count together.
	MaxSeries whole `yaml:"max_series"`
}

type logSection struct {
	// The least severe level that is logged.
	Level string `yaml:"level" jsonschema:"enum=debug,enum=info,enum=warn,enum=error"`
	// text for people, json for machines.
	Format string `yaml:"format" jsonschema:"enum=text,enum=json"`
}

type shutdownSection struct {
	// How long health says NOT_SERVING before the listener closes, so that Envoy can turn to other instances.
	Delay string `yaml:"delay"`
	// How long requests in flight may take after that, and then what is settled and given back.
	Timeout string `yaml:"timeout"`
}

type storeSection struct {
	// memory: in the process, for one node. redis: shared by a fleet.
	Type string `yaml:"type" jsonschema:"enum=memory,enum=redis"`
	// Settings of the memory store.
	Memory memorySection `yaml:"memory"`
	// Settings of the Redis store.
	Redis redisSection `yaml:"redis"`
}

type memorySection struct {
	// How many API keys can be counted at once. Requests of further keys get 503 until windows have ended. Each takes about 200 bytes of memory. With Redis: of how many keys the counts are remembered for the time when it is away.
	MaxKeys whole `yaml:"max_keys"`
	// The file in which keys made by the admin API and usage outlive the process, relative to this file. Without one, they end with it.
	// Counts go into a second file beside it, whose name ends in .counts.
	File string `yaml:"file"`
	// How often the counts are written to their file, and so what a killed process forgets of them.
	SnapshotInterval string `yaml:"snapshot_interval"`
}

type redisSection struct {
	// host:port of the server. It has no meaning where sentinel or cluster names any.
	Address string `yaml:"address"`
	// The Sentinels that know which server is the primary.
	Sentinel sentinelSection `yaml:"sentinel"`
	// The Cluster that the counts are spread over.
	Cluster clusterSection `yaml:"cluster"`
	// How the connections are secured, those to Sentinels too.
	TLS redisTLSSection `yaml:"tls"`
	// The ACL user; empty for the default user.
	Username string `yaml:"username"`
	// A file that holds the password, relative to this file. Its content may change while the server runs.
	PasswordFile string `yaml:"password_file"`
	// An environment variable that holds the password.
	PasswordEnv string `yaml:"password_env"`
	// The number of the database.
	Database whole `yaml:"database"`
	// What the name of every Redis key begins with.
	KeyPrefix string `yaml:"key_prefix"`
	// How long one call may take. Keep it below Envoy's timeout.
	Timeout string `yaml:"timeout"`
	// How many connections there may be for counting, to each server. Up to a dozen more are for keys and usage.
	PoolSize whole `yaml:"pool_size"`
	// How many instances are taken to share the limits while Redis is away and never told how many there are.
	AssumedInstances whole `yaml:"assumed_instances"`
	// How many settlements wait for Redis while it is away; further ones are lost. Each key has as much of that room as is left.
	MaxQueuedSettlements whole `yaml:"max_queued_settlements"`
}

type sentinelSection struct {
	// host:port of each Sentinel; none: there are none.
	Addresses []string `yaml:"addresses,omitempty"`
	// What the Sentinels call the primary.
	Master string `yaml:"master,omitempty"`
	// The ACL user of the Sentinels; empty for the default user.
	Username string `yaml:"username,omitempty"`
	// A file that holds the password of the Sentinels, relative to this file.
	PasswordFile string `yaml:"password_file,omitempty"`
	// An environment variable that holds it.
	PasswordEnv string `yaml:"password_env,omitempty"`
}

type clusterSection struct {
	// host:port of some of its servers, by which the others are found; none: it is no Cluster.
	Addresses []string `yaml:"addresses,omitempty"`
}

type redisTLSSection struct {
	// Whether the connections are encrypted and the servers' certificates checked.
	Enabled bool `yaml:"enabled"`
	// A PEM file with the roots that the servers' certificates must lead to, relative to this file; empty: those of the system.
	CAFile string `yaml:"ca_file,omitempty"`
	// A PEM file with the certificate to show to the servers, where they ask for one.
	CertFile string `yaml:"cert_file,omitempty"`
	// A PEM file with that certificate's private key.
	KeyFile string `yaml:"key_file,omitempty"`
	// The name that the servers' certificates must have; empty: that of the address.
	ServerName string `yaml:"server_name,omitempty"`
}

type keysSection struct {
	// The file of hashed keys, relative to this file.
	File string `yaml:"file"`
	// The request headers that may carry a key; without this setting authorization, x-api-key and api-key. authorization is read as "Bearer KEY". A 401 asks for the first. In the rate limit chain Envoy's file says which are read.
	Headers []string `yaml:"headers"`
	// Whether the upstream sees those headers. In the rate limit chain Envoy's file says so.
	ForwardCredentials bool `yaml:"forward_credentials"`
	// The secrets mixed into hashes that name them; several may be live at once.
	Peppers []pepperSection `yaml:"peppers"`
}

type pepperSection struct {
	// What hashes call it.
	Name string `yaml:"name"`
	// A file that holds the secret, relative to this file.
	File string `yaml:"file,omitempty"`
	// An environment variable that holds the secret.
	Env string `yaml:"env,omitempty"`
}

type resourceSection struct {
	// Path prefixes, whole segments, without *, in upper or lower case alike: /v1/chat matches /v1/Chat/completions and not /v1/chatter.
	Paths []string `yaml:"paths"`
	// What its requests are taken to use where they do not say it; without this setting what fits an API like OpenAI's.
	Tokens *tokenRulesSection `yaml:"tokens,omitempty"`
}

type tokenRulesSection struct {
	// The longest prompt in tokens; no estimate goes beyond it.
	MaxInput *whole `yaml:"max_input" jsonschema:"required,minimum=0"`
	// What an answer is taken to use where the request declares nothing and the key has no history.
	Output *whole `yaml:"output" jsonschema:"required,minimum=0"`
	// What is reserved for an answer where the body could not be read.
	MaxOutput *whole `yaml:"max_output" jsonschema:"required,minimum=0"`
	// The most that is reserved for what a request declares; 0: all of it. With a cap, requests at the same time may use more than a limit.
	Cap whole `yaml:"cap,omitempty" jsonschema:"minimum=0"`
}

type tokensSection struct {
	// A list of what settles: access_log, ratelimit, or both. An empty list: nothing does, and reservations stand as they are.
	SettleBy []string `yaml:"settle_by" jsonschema:"enum=access_log,enum=ratelimit"`
	// How long a reservation waits for its settlement; after that it stands as it is. Longer than the longest answer.
	Keep string `yaml:"keep"`
	// What a cached token of a prompt counts beside an uncached one; 0 leaves them out.
	CachedInput float64 `yaml:"cached_input" jsonschema:"minimum=0,maximum=1"`
	// What a token of a model counts, by the model's name, or the beginning of names followed by *; models that are not named count 1.
	Models map[string]float64 `yaml:"models,omitempty"`
	// Charges that are given back.
	Refunds refundsSection `yaml:"refunds"`
}

type refundsSection struct {
	// The statuses of answers whose whole charge is given back, such as 500 and 503.
	Statuses []whole `yaml:"statuses,omitempty"`
	// Whether the charges of answers from Envoy's cache are given back.
	Cached bool `yaml:"cached,omitempty"`
	// The most that refunds may give back in a window, as a share of each limit.
	MaxShare float64 `yaml:"max_share" jsonschema:"minimum=0,maximum=1"`
}

type tierSection struct {
	// The priority of the tier's requests: 1 to 4, or low, normal, high, critical.
	Priority string `yaml:"priority" jsonschema:"oneof_type=string;integer"`
	// Says that the tier has no limit over all resources.
	Unlimited bool `yaml:"unlimited,omitempty"`
	// What becomes of the tier's requests while Redis is away, instead of what on_store_failure says for all.
	OnStoreFailure string `yaml:"on_store_failure,omitempty" jsonschema:"enum=local,enum=deny,enum=allow"`
	// The limits; all that apply to a request are charged together.
	Limits []limitSection `yaml:"limits,omitempty"`
}

type limitSection struct {
	// What is counted.
	Metric string `yaml:"metric" jsonschema:"required,enum=requests,enum=tokens,enum=input_tokens,enum=output_tokens"`
	// The window: second, minute, hour, day, week, month (UTC), or a duration such as 90s.
	Per string `yaml:"per" jsonschema:"required"`
	// The most that is admitted in a window; 0 refuses everything.
	Max *whole `yaml:"max" jsonschema:"required,minimum=0"`
	// How it counts: fixed, by the current window alone, which is so where nothing is said, or sliding, where of the window before counts the part of the current one that is left.
	Algorithm string `yaml:"algorithm,omitempty" jsonschema:"enum=fixed,enum=sliding"`
	// Count only this resource, on top of the other limits.
	Resource string `yaml:"resource,omitempty"`
	// Count only this priority, on top of the other limits.
	Priority string `yaml:"priority,omitempty" jsonschema:"oneof_type=string;integer"`
}

type poolSection struct {
	// The most that all requests for the resource may use in a window.
	Limits []poolLimitSection `yaml:"limits" jsonschema:"required"`
	// How much of that requests of each priority may use, as a share from 0 to 1 that does not fall as the priority rises.
	Shares sharesSection `yaml:"shares,omitempty"`
}

type poolLimitSection struct {
	// What is counted.
	Metric string `yaml:"metric" jsonschema:"required,enum=requests,enum=tokens,enum=input_tokens,enum=output_tokens"`
	// The window: second, minute, hour, day, week, month (UTC), or a duration such as 90s.
	Per string `yaml:"per" jsonschema:"required"`
	// The most that all keys together may use in a window.
	Max *whole `yaml:"max" jsonschema:"required,minimum=0"`
}

type sharesSection struct {
	// Of priority 1; without this setting 0.5.
	Low *float64 `yaml:"low,omitempty" jsonschema:"minimum=0,maximum=1"`
	// Of priority 2; without this setting 0.75.
	Normal *float64 `yaml:"normal,omitempty" jsonschema:"minimum=0,maximum=1"`
	// Of priority 3; without this setting 0.9.
	High *float64 `yaml:"high,omitempty" jsonschema:"minimum=0,maximum=1"`
	// Of priority 4; without this setting 1.
	Critical *float64 `yaml:"critical,omitempty" jsonschema:"minimum=0,maximum=1"`
}

type headersSection struct {
	// What X-RateLimit-Limit and -Remaining say where there is no limit: the word unlimited, a number, or omit.
	Unlimited string `yaml:"unlimited" jsonschema:"oneof_type=string;integer"`
	// Whether responses also have x-ratelimit-limit-requests, -remaining-requests, -reset-requests and the same for tokens, as OpenAI's API has them.
	PerMetric bool `yaml:"per_metric"`
	// Whether responses also have RateLimit-Policy and RateLimit, of the IETF's draft.
	IETF bool `yaml:"ietf"`
}

type rateLimitSection struct {
	// The domain that Envoy's filter names; requests for another are refused.
	Domain string `yaml:"domain"`
	// What the entries of descriptors are called.
	Entries entriesSection `yaml:"entries"`
	// The domain of calls that settle reservations; see tokens.settle_by.
	SettlementDomain string `yaml:"settlement_domain"`
	// What hits_addend counts. Tokens are charged in full to each limit on tokens, of whatever kind.
	Hits string `yaml:"hits" jsonschema:"enum=requests,enum=tokens"`
	// Whether descriptors with is_negative_hits give hits back. Whoever reaches the listener can then do so.
	NegativeHits bool `yaml:"negative_hits"`
	// Whether the limit of a descriptor stands in for the tier's, or the key's.
	LimitOverride bool `yaml:"limit_override"`
	// What becomes of calls in which no entry is known: refuse or allow.
	Unknown string `yaml:"unknown" jsonschema:"enum=refuse,enum=allow"`
	// How many descriptors a call may have, and how many entries all of them together four times that; others are refused.
	MaxDescriptors whole `yaml:"max_descriptors"`
}

type entriesSection struct {
	// The API key, raw or as "Bearer KEY". With .bearer behind this name only the second counts, with .raw only the first.
	APIKey string `yaml:"api_key"`
	// The resource's name.
	Resource string `yaml:"resource"`
	// The path, from which the resource follows where no entry names it.
	Path string `yaml:"path"`
	// The priority asked for.
	Priority string `yaml:"priority"`
	// The ID of a key that something else has authenticated; it stands in for the key. Empty: believed from nobody.
	KeyID string `yaml:"key_id"`
	// The tier of the key named by key_id, instead of the one on record. Empty: believed from nobody.
	Tier string `yaml:"tier"`
	// What the names of entries begin with that say something of the body: content_length, method, read, model, max_tokens, max_completion_tokens, max_output_tokens, n, best_of, background.
	FactPrefix string `yaml:"fact_prefix"`
}

// keysFile is the whole of keys.yaml.
type keysFile struct {
	Keys []keySection `yaml:"keys"`
}

type keySection struct {
	// The public name: letters, digits, - and _. The counts belong to it.
	ID string `yaml:"id" jsonschema:"required"`
	// For people.
	Name string `yaml:"name,omitempty"`
	// sha256:<hex> or hmac-sha256:<pepper>:<hex>; see tiergate keys create and hash.
	Hash string `yaml:"hash" jsonschema:"required"`
	// The name of a tier.
	Tier string `yaml:"tier" jsonschema:"required"`
	// Instead of the tier's priority.
	Priority string `yaml:"priority,omitempty" jsonschema:"oneof_type=string;integer"`
	// The only resources the key has leave for; none named means all.
	Resources []string `yaml:"resources,omitempty"`
	// The end of the key's life, as 2027-01-31T00:00:00Z.
	Expires string `yaml:"expires,omitempty"`
	// Whether the key has been withdrawn.
	Revoked bool `yaml:"revoked,omitempty"`
	// Whether the key works only under allow_demo_keys.
	Demo bool `yaml:"demo,omitempty"`
	// Limits instead of the tier's, or beside them; without an algorithm as the limit that they replace.
	Overrides []overrideSection `yaml:"overrides,omitempty"`
}

type overrideSection struct {
	limitSection `yaml:",inline"`
	// The end of the override, as 2027-01-31T00:00:00Z.
	Until string `yaml:"until,omitempty"`
}

// written returns the configuration that holds where the file says nothing.
func written() file {
	return file{
		GRPC:     grpcSection{Address: "127.0.0.1:9001", SocketMode: "0660", MaxConnections: 1000, MaxCalls: 10_000, MaxMessageBytes: 4 << 20},
		Operator: operatorSection{Address: "127.0.0.1:9002"},
		Customer: customerSection{Address: "127.0.0.1:9003"},
		Log:      logSection{Level: "info", Format: "text"},
		Shutdown: shutdownSection{Delay: "0s", Timeout: "10s"},
		Store: storeSection{
			Type:   "memory",
			Memory: memorySection{MaxKeys: 1_000_000, SnapshotInterval: "5s"},
			Redis: redisSection{
				Address: "127.0.0.1:6379", KeyPrefix: "tiergate", Timeout: "50ms", PoolSize: 32, AssumedInstances: 1, MaxQueuedSettlements: 100_000,
			},
		},
		OnStoreFailure: "local",
		Usage:          usageSection{Interval: "5s", MaxSeries: 100_000},
		Keys:           keysSection{File: "keys.yaml"},
		CountBy:        "key",
		Tokens: tokensSection{
			SettleBy: []string{"access_log"}, Keep: "1h", CachedInput: 1, Refunds: refundsSection{MaxShare: 0.1},
		},
		Headers: headersSection{Unlimited: "unlimited"},
		RateLimit: rateLimitSection{
			Domain: "tiergate", SettlementDomain: "tiergate-settle", Hits: "requests", Unknown: "refuse", MaxDescriptors: 64,
			Entries: entriesSection{APIKey: "api_key", Resource: "resource", Path: "path", Priority: "priority", FactPrefix: "request."},
		},
		Tracing: tracingSection{SampleRatio: 0.01},
	}
}
