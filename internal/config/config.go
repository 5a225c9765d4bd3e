// Package config reads TierGate's configuration: tiergate.yaml, the file of
// hashed keys it names, and the secrets both refer to. It is the only package
// that knows YAML. What it returns is checked whole; what it refuses it refuses
// with every fault at once, each with file and line.
//
// It does not know what is done with the values, nor Envoy or Redis.
package config

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
)

// Config is a configuration in checked values.
type Config struct {
	Start  Start  // what only a start takes up
	Reload Reload // what a reload takes up too
	// Warnings is what can be used, and yet does not work.
	Warnings Faults
	// Sum is a digest of everything that was read; it changes with the content.
	Sum [sha256.Size]byte
	// FileSum and KeysSum are digests of tiergate.yaml and of the file of keys alone: unlike
	// Sum they have no part in a secret, which could be guessed by them.
	FileSum, KeysSum [sha256.Size]byte
}

// Start is what takes effect at a start only, and the section of the file that says it.
type Start struct {
	GRPC            Address       `section:"grpc"`
	Listener        Listener      `section:"grpc"`
	Operator        Address       `section:"operator.address"`
	Customer        Address       `section:"customer"`
	LogLevel        slog.Level    `section:"log"`
	LogJSON         bool          `section:"log"`
	ShutdownDelay   time.Duration `section:"shutdown"`
	ShutdownTimeout time.Duration `section:"shutdown"`
	Store           Store         `section:"store"`
	SessionSecret   apikey.Key    `section:"customer"` // zero: none
	UsageInterval   time.Duration `section:"usage"`
	UsageMaxSeries  int           `section:"usage"`
	Tracing         Tracing       `section:"tracing"`
}

// A Listener is what the gRPC listener is held to.
type Listener struct {
	SocketMode      os.FileMode
	TLS             bool // whether it has a certificate; see Reload.Listener
	ClientCerts     bool // whether every client must show one
	MaxConnections  int
	MaxCalls        int
	MaxMessageBytes int
}

// Tracing says where traces go.
type Tracing struct {
	Endpoint    string // host:port; empty: nothing is traced
	Insecure    bool
	CAFile      string // read at a start; empty: the roots of the system
	SampleRatio float64
}

// Reload is what a running server swaps in one step.
type Reload struct {
	AdminTokens        []AdminToken
	KeyHeaders         []string // lower case
	ForwardCredentials bool
	Resources          []quota.Resource
	Plans              map[string]*quota.Plan // by tier name
	Pools              map[string]*quota.Pool // by resource
	Directory          *apikey.Directory
	Peppers            []apikey.Pepper
	AllowDemoKeys      bool
	Unlimited          UnlimitedHeader
	PerMetricHeaders   bool
	IETFHeaders        bool
	RateLimit          RateLimit
	Tokens             Tokens
	Identity           Identity
	Listener           TLS // the certificate of the gRPC listener, and whom it serves
	Redis              RedisAccess
}

// Identity says where the ID and the tier of a key are found that another filter has
// authenticated. Empty paths: nowhere.
type Identity struct{ KeyID, Tier MetadataPath }

// A MetadataPath leads to a text in Envoy's filter metadata.
type MetadataPath struct {
	Namespace string
	Fields    []string
}

// TLS is what one side of a connection shows and believes.
type TLS struct {
	Certificate *tls.Certificate // nil: none
	Roots       *x509.CertPool   // nil: those of the system; of a listener: nobody is asked for a certificate
	Names       []string         // of a listener: the only clients; none: all that have a certificate
	ServerName  string           // of a client: what the server is called; empty: as its address
}

// RedisAccess is how Redis lets TierGate in.
type RedisAccess struct {
	Password, SentinelPassword apikey.Key // zero: none
	TLS                        TLS
}

// Tokens says what tokens are reserved and how they are settled.
type Tokens struct {
	Rules             map[string]quota.TokenRules // by resource
	Models            map[string]float64          // what a token counts; see envoyapi.ModelWeights
	CachedInput       float64
	Keep              time.Duration
	SettleByAccessLog bool
	SettleByRateLimit bool
	RefundStatuses    []int
	RefundCached      bool
	RefundShare       int64 // thousandths
}

// An AdminToken is who may use the admin API.
type AdminToken struct {
	Name string
	Hash [sha256.Size]byte // of the token, which is kept nowhere
}

// An Address is where to listen.
type Address struct {
	Network string // tcp or unix
	Address string // host:port, or the socket's path
}

// String returns the address as it is configured.
func (a Address) String() string {
	if a.Network == "unix" {
		return "unix:" + a.Address
	}
	return a.Address
}

// Loopback reports whether only this machine reaches the address.
func (a Address) Loopback() bool {
	host, _, err := net.SplitHostPort(a.Address)
	if a.Network == "unix" || (err == nil && host == "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// Changed returns the sections of the file in which a start with either would differ.
func (s Start) Changed(o Start) (sections []string) {
	fields, others := reflect.ValueOf(s), reflect.ValueOf(o)
	for i := range fields.NumField() {
		section := fields.Type().Field(i).Tag.Get("section")
		if !reflect.DeepEqual(fields.Field(i).Interface(), others.Field(i).Interface()) && !slices.Contains(sections, section) {
			sections = append(sections, section)
		}
	}
	return sections
}

// Store says where counts are kept.
type Store struct {
	Redis   bool   // else in memory
	MaxKeys int    // memory: accounts counted at once
	File    string // memory: where keys and usage are kept, and beside it counts; empty: only as long as the process

	SnapshotInterval time.Duration // memory: how often counts are written

	Address              string   // Redis: host:port
	Sentinels            []string // host:port of each; none: there are none
	SentinelMaster       string
	SentinelUsername     string
	Cluster              []string // host:port of some of its servers; none: it is no Cluster
	TLS                  bool     // see Reload.Redis
	Username             string
	Database             int
	KeyPrefix            string
	Timeout              time.Duration
	PoolSize             int
	AssumedInstances     int
	MaxQueuedSettlements int
}

// SameRedis reports whether both reach the same servers of Redis as the same users: what
// the one is let in by is of use to the other.
func (s Store) SameRedis(o Store) bool {
	return s.Redis == o.Redis && s.TLS == o.TLS && s.Address == o.Address && s.SentinelMaster == o.SentinelMaster &&
		s.Username == o.Username && s.SentinelUsername == o.SentinelUsername &&
		slices.Equal(s.Sentinels, o.Sentinels) && slices.Equal(s.Cluster, o.Cluster)
}

// UnlimitedHeader says what stands for a limit that there is not. Omit leaves
// the headers out; else they have Text.
type UnlimitedHeader struct {
	Omit bool
	Text string
}

// RateLimit says what requests to the rate limit service are called.
type RateLimit struct {
	Domain                           string
	APIKey, Resource, Path, Priority string // names of descriptor entries
	KeyID, Tier                      string // the same, of trusted ones; empty: none
	FactPrefix                       string // of entries that say something of the body
	SettlementDomain                 string
	Hits                             quota.Metric // what hits_addend counts: requests or tokens
	NegativeHits, LimitOverride      bool
	AllowUnknown                     bool
	MaxDescriptors                   int
}

// Options say what to load.
type Options struct {
	File   string              // tiergate.yaml
	Sets   []string            // path=value, each replaces a value of the file
	Getenv func(string) string // nil: os.Getenv
	Now    func() time.Time    // for Config.Warnings of certificates; nil: there are none
	// WithoutSecrets checks a configuration where its secrets are not: no secret, certificate
	// or private key that it names is read. What is loaded is not to be served.
	WithoutSecrets bool
}

// Load reads and checks a configuration. What is wrong with it is returned as
// Faults; another error means that the file could not be read at all. The
// sources are the files that were tried, to be watched even after an error.
func Load(o Options) (*Config, Sources, error) {
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	l := &loader{options: o, config: &Config{}, sources: Sources{}}
	err := l.load()
	if faults, ok := errors.AsType[Faults](err); ok {
		faults.redact()
		return nil, l.sources, faults
	}
	if err != nil {
		return nil, l.sources, err
	}
	l.config.Warnings.redact()
	return l.config, l.sources, nil
}

// A loader gathers what one Load reads.
type loader struct {
	options Options
	config  *Config
	sources Sources
	read    []byte // everything, for the digest
}

func (l *loader) load() error {
	content, err := l.readFile(l.options.File)
	if err != nil {
		return fmt.Errorf("read the configuration: %w: name the file with --config", err)
	}
	written := written()
	doc := decode(l.options.File, content, &written)
	if !doc.readable {
		return doc.faults
	}
	c := &checker{document: doc, loader: l, sets: l.options.Sets}
	for _, set := range l.options.Sets {
		c.below = append(c.below, apply(set, &written)...)
	}
	c.check(written)
	if faults := append(c.sorted(), c.below...); len(faults) > 0 {
		return faults
	}
	l.config.Sum, l.config.FileSum = sha256.Sum256(l.read), sha256.Sum256(content)
	return nil
}

// readFile reads a file and remembers that the configuration depends on it,
// even if it cannot be read.
func (l *loader) readFile(name string) ([]byte, error) {
	l.sources[name] = state(name)     // before reading, so that no later change is missed
	content, err := os.ReadFile(name) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, err
	}
	l.read = append(append(l.read, content...), 0)
	return content, nil
}

// beside returns a path that is relative to the configuration file.
func (l *loader) beside(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(filepath.Dir(l.options.File), name)
}

// secret reads a secret from a file or from the environment; "" where neither is named.
func (l *loader) secret(file, env string) (string, error) {
	switch {
	case file != "" && env != "":
		return "", errors.New("both a file and an environment variable: name one")
	case l.options.WithoutSecrets && file+env != "":
		return rand.Text() + rand.Text(), nil // as long as any has to be, and nobody's
	case file != "":
		content, err := l.readFile(l.beside(file))
		if err != nil {
			return "", err
		}
		if s := strings.TrimRight(string(content), "\r\n"); s != "" {
			return s, nil
		}
		return "", fmt.Errorf("file %s is empty: write the secret into it", file)
	case env != "":
		if s := l.options.Getenv(env); s != "" {
			return s, nil
		}
		return "", fmt.Errorf("environment variable %s is not set: set it to the secret", env)
	default:
		return "", nil
	}
}

// neededSecret reads the secret of something that must have one.
func (l *loader) neededSecret(file, env string) (string, error) {
	if file == "" && env == "" {
		return "", errors.New("no secret: want file or env")
	}
	return l.secret(file, env)
}

// apply lays path=value over what the file says. The value is read as YAML, so
// that it is checked as strictly as the file.
func apply(set string, into *file) Faults {
	source := "--set " + set
	path, value, ok := strings.Cut(set, "=")
	if !ok || path == "" {
		return Faults{{Source: source, Problem: "want path=value, such as store.type=redis"}}
	}
	if section, _, _ := strings.Cut(path, "."); section == "tiers" || section == "resources" || section == "capacity" {
		// A part of a tier would silently replace the whole of it.
		return Faults{{Source: source, Problem: section + " can be changed in the file only"}}
	}
	var node yaml.Node
	if err := yaml.Unmarshal([]byte(value), &node); err != nil || len(node.Content) != 1 {
		node = yaml.Node{Kind: yaml.DocumentNode, Content: []*yaml.Node{{Kind: yaml.ScalarNode, Tag: "!!str", Value: value}}}
	}
	inner := node.Content[0]
	for _, step := range slices.Backward(strings.Split(path, ".")) {
		inner = &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{{Kind: yaml.ScalarNode, Tag: "!!str", Value: step}, inner}}
	}
	content, err := yaml.Marshal(inner)
	if err != nil {
		return Faults{{Source: source, Problem: err.Error()}}
	}
	faults := decode(source, content, into).sorted()
	for i := range faults {
		faults[i].Line = 0
	}
	return faults
}
