package e2e

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"go.yaml.in/yaml/v3"

	"github.com/tiergate/tiergate/internal/devstack"
)

// composeProject reads docker-compose.yaml as Docker Compose does: unknown
// fields and references to what is not there are faults.
func composeProject(t *testing.T, overrides ...string) *types.Project {
	t.Helper()
	dir, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	files := []types.ConfigFile{{Filename: filepath.Join(dir, "docker-compose.yaml")}}
	for _, content := range overrides {
		files = append(files, types.ConfigFile{Filename: filepath.Join(dir, "docker-compose.override.yaml"), Content: []byte(content)})
	}
	p, err := loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir:  dir,
		ConfigFiles: files,
		Environment: types.Mapping{},
	}, func(o *loader.Options) { o.SetProjectName("tiergate", true) })
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestComposeOfOperators: what the guide adds publishes the operators' port to this machine
// alone, by a network that leads outside, and changes nothing else.
func TestComposeOfOperators(t *testing.T) {
	t.Parallel()
	shipped, p := composeProject(t), composeProject(t, block(t, "yaml compose"))
	s, former := p.Services["tiergate"], shipped.Services["tiergate"]
	if len(s.Ports) != 1 || s.Ports[0].HostIP != "127.0.0.1" || s.Ports[0].Published != "9002" || s.Ports[0].Target != 9002 {
		t.Errorf("ports: %+v", s.Ports)
	}
	if _, ok := s.Networks["edge"]; !ok || p.Networks["edge"].Internal || len(s.Networks) != len(former.Networks)+1 {
		t.Errorf("networks: %v, before %v", s.NetworksByPriority(), former.NetworksByPriority())
	}
	s.Ports, s.Networks = former.Ports, former.Networks
	if !reflect.DeepEqual(s, former) {
		t.Errorf("have %+v, want %+v", s, former)
	}
}

// TestStopsAreWaitedFor: neither example kills TierGate before its own times to stop are over:
// the delay, and twice the time-out.
func TestStopsAreWaitedFor(t *testing.T) {
	t.Parallel()
	const shipped = 10 * time.Second // shutdown.timeout where nothing is said, as in config/tiergate.yaml
	if grace := composeProject(t).Services["tiergate"].StopGracePeriod; grace == nil || time.Duration(*grace) <= 2*shipped {
		t.Errorf("compose waits %v before it kills, want longer than %s", grace, 2*shipped)
	}
	manifest, err := os.ReadFile(filepath.Join(root, "examples", "kubernetes", "tiergate.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	times := regexp.MustCompile(`(?s)shutdown: \{delay: (\d+)s, timeout: (\d+)s\}.*terminationGracePeriodSeconds: (\d+)\n`).FindSubmatch(manifest)
	if times == nil {
		t.Fatal("the Kubernetes example does not say its times")
	}
	var seconds [3]int
	for i := range seconds {
		if seconds[i], err = strconv.Atoi(string(times[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if seconds[2] <= seconds[0]+2*seconds[1] {
		t.Errorf("Kubernetes waits %d s before it kills, want longer than %d s and twice %d s", seconds[2], seconds[0], seconds[1])
	}
}

// TestComposePublishesOnlyTheAPI holds the file to the one way in.
func TestComposePublishesOnlyTheAPI(t *testing.T) {
	t.Parallel()
	p := composeProject(t)
	var published []string
	for _, s := range p.Services {
		for _, port := range s.Ports {
			published = append(published, fmt.Sprintf("%s %s:%s to %d", s.Name, port.HostIP, port.Published, port.Target))
		}
		if s.NetworkMode != "" {
			t.Errorf("%s: network_mode %s goes past the published port", s.Name, s.NetworkMode)
		}
		for network := range s.Networks {
			if s.Name != "envoy" && !p.Networks[network].Internal {
				t.Errorf("%s is on %s, which leads outside", s.Name, network)
			}
		}
	}
	if want := []string{"envoy 127.0.0.1:10000 to 10000"}; !slices.Equal(published, want) {
		t.Errorf("published: have %q, want %q", published, want)
	}
}

// TestComposeContainersAreLockedDown looks at what each container may do.
func TestComposeContainersAreLockedDown(t *testing.T) {
	t.Parallel()
	user := regexp.MustCompile(`^[1-9]\d*:[1-9]\d*$`)
	for _, s := range composeProject(t).Services {
		if !s.ReadOnly || s.Privileged || len(s.CapAdd) > 0 || !slices.Equal(s.CapDrop, []string{"ALL"}) {
			t.Errorf("%s: want read_only and no capabilities", s.Name)
		}
		if !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s: want no-new-privileges", s.Name)
		}
		if s.Build == nil && !user.MatchString(s.User) || s.Build != nil && s.User != "" {
			t.Errorf("%s: user %q: want a number that is not root's, or the built image's", s.Name, s.User)
		}
		for _, v := range s.Volumes {
			if v.Type == types.VolumeTypeVolume && s.Name == "redis" {
				continue
			}
			if _, err := os.Stat(v.Source); err != nil || !v.ReadOnly {
				t.Errorf("%s: %s: want a directory of the project, read-only: %v", s.Name, v.Source, err)
			}
		}
	}
}

// TestComposeStartsInOrder checks that nobody is asked before it can answer.
func TestComposeStartsInOrder(t *testing.T) {
	t.Parallel()
	p := composeProject(t)
	order := map[string]map[string]string{
		"envoy":    {"tiergate": types.ServiceConditionHealthy, "upstream": types.ServiceConditionStarted},
		"tiergate": {"redis": types.ServiceConditionHealthy},
		"redis":    {}, "upstream": {},
	}
	if have := len(p.Services); have != len(order) {
		t.Errorf("have %d services, want %d", have, len(order))
	}
	for name, want := range order {
		have := map[string]string{}
		for needed, how := range p.Services[name].DependsOn {
			have[needed] = how.Condition
			if check := p.Services[needed].HealthCheck; how.Condition == types.ServiceConditionHealthy && (check == nil || len(check.Test) == 0) {
				t.Errorf("%s waits for the health of %s, which has no check", name, needed)
			}
		}
		if fmt.Sprint(have) != fmt.Sprint(want) {
			t.Errorf("%s depends on %v, want %v", name, have, want)
		}
	}
}

// TestComposeCommandIsAccepted gives TierGate's flags of the file to the program.
func TestComposeCommandIsAccepted(t *testing.T) {
	t.Parallel()
	p := composeProject(t)
	s := p.Services["tiergate"]
	if s.Command[0] != "serve" {
		t.Fatalf("the command is %q, want serve", s.Command)
	}
	words := append([]string{"config", "check"}, s.Command[1:]...)
	for i := range words {
		words[i] = onHost(p, s).Replace(words[i])
	}
	out, err := exec.CommandContext(t.Context(), binary, words...).CombinedOutput()
	if err != nil {
		t.Errorf("tiergate %s: %v\n%s", strings.Join(words, " "), err, out)
	}
	for _, want := range []string{"--set=store.type=redis", "--set=allow_demo_keys=true"} {
		if !slices.Contains(s.Command, want) {
			t.Errorf("the command lacks %s", want)
		}
	}
}

// onHost replaces a container's paths by those of the files that are mounted
// there.
func onHost(p *types.Project, s types.ServiceConfig) *strings.Replacer {
	var pairs []string
	for _, v := range s.Volumes {
		if v.Type == types.VolumeTypeVolume {
			continue
		}
		pairs = append(pairs, v.Target, v.Source)
	}
	for _, secret := range s.Secrets {
		pairs = append(pairs, "/run/secrets/"+secret.Source, p.Secrets[secret.Source].File)
	}
	return strings.NewReplacer(pairs...)
}

// TestComposeServesEnvoysClusters checks that whoever Envoy's files name is a
// service that listens there, and that Envoy can reach it.
func TestComposeServesEnvoysClusters(t *testing.T) {
	t.Parallel()
	p := composeProject(t)
	found := 0
	for _, address := range clusterAddresses(t, filepath.Join(p.WorkingDir, "envoy", "envoy.yaml")) {
		found++
		host, port, _ := strings.Cut(address, ":")
		s, ok := p.Services[host]
		if !ok {
			t.Errorf("Envoy calls %s: there is no such service", address)
			continue
		}
		if !strings.Contains(strings.Join(s.Command, " ")+" ", "0.0.0.0:"+port+" ") {
			t.Errorf("Envoy calls %s: the command of %s does not listen there: %q", address, host, s.Command)
		}
		if _, ok := s.Networks["inside"]; !ok {
			t.Errorf("Envoy cannot reach %s: it is not on the network inside", host)
		}
	}
	if found < 2 {
		t.Errorf("found %d addresses in Envoy's file, want at least two", found)
	}
}

// clusterAddresses returns host:port of every endpoint in an Envoy file.
func clusterAddresses(t *testing.T, path string) []string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		StaticResources struct {
			Clusters []yaml.Node `yaml:"clusters"`
		} `yaml:"static_resources"`
	}
	if err := yaml.Unmarshal(content, &file); err != nil {
		t.Fatal(err)
	}
	var addresses []string
	for _, cluster := range file.StaticResources.Clusters {
		addresses = append(addresses, socketAddresses(&cluster)...)
	}
	return addresses
}

func socketAddresses(n *yaml.Node) []string {
	var addresses []string
	for i, child := range n.Content {
		if child.Value == "socket_address" {
			var a struct {
				Address string `yaml:"address"`
				Port    string `yaml:"port_value"`
			}
			if err := n.Content[i+1].Decode(&a); err == nil {
				addresses = append(addresses, a.Address+":"+a.Port)
			}
		}
		addresses = append(addresses, socketAddresses(child)...)
	}
	return addresses
}

// TestComposeRedisWantsItsPassword runs the command and the health check of the
// Redis service.
func TestComposeRedisWantsItsPassword(t *testing.T) {
	t.Parallel()
	p := composeProject(t)
	s := p.Services["redis"]
	script := s.Command[len(s.Command)-1]
	volumes := slices.Collect(func(yield func(string) bool) {
		for _, v := range s.Volumes {
			if !yield(v.Type + " " + v.Target) {
				return
			}
		}
	})
	if len(s.Ports) > 0 || !strings.Contains(script, "\nappendonly yes\n") || !slices.Equal(volumes, []string{"volume /data"}) {
		t.Errorf("want a Redis without a port that keeps what it is given: %v", volumes)
	}
	password, err := os.ReadFile(p.Secrets["redis_password"].File)
	if err != nil {
		t.Fatal(err)
	}
	address, err := devstack.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(address)
	here := func(words []string) []string {
		script := strings.NewReplacer("bind 0.0.0.0", "bind 127.0.0.1", "6379", port, "/data", t.TempDir(), "$$", "$").Replace(onHost(p, s).Replace(words[len(words)-1]))
		return []string{"sh", "-c", script}
	}
	redis, err := devstack.Start("redis", here(s.Command), nil, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = redis.Stop(10 * time.Second) }()
	check, deadline := here(s.HealthCheck.Test), time.After(20*time.Second)
	for exec.CommandContext(t.Context(), check[0], check[1:]...).Run() != nil {
		select {
		case <-redis.Done():
			t.Fatal("redis-server ended")
		case <-deadline:
			t.Fatal("redis-server does not get healthy")
		case <-time.After(20 * time.Millisecond):
		}
	}
	secret := strings.TrimSpace(string(password))
	for _, talk := range [][2]string{
		{"PING", "-NOAUTH Authentication required."},
		{"AUTH wrong", "-WRONGPASS invalid username-password pair or user is disabled."},
		{"AUTH " + secret, "+OK"},
	} {
		if have := ask(t, address, talk[0]); have != talk[1] {
			t.Errorf("%s: have %q, want %q", talk[0], have, talk[1])
		}
	}
	if err := redis.Stop(10 * time.Second); err != nil { // the next ones want its port
		t.Fatal(err)
	}
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{empty, empty + "-is-missing"} {
		words := here([]string{strings.ReplaceAll(s.Command[len(s.Command)-1], "/run/secrets/redis_password", secret)})
		open, err := devstack.Start("redis", words, nil, t.Output())
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-open.Done():
		case <-time.After(5 * time.Second):
			t.Errorf("Redis starts without a password (%s)", filepath.Base(secret))
			_ = open.Stop(10 * time.Second)
		}
	}
}

// ask sends a Redis command on a connection of its own and returns the first
// line of the answer.
func ask(t *testing.T, address, command string) string {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "%s\r\n", command)
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// TestImagesArePinned checks the images that are pulled and those that are
// built.
func TestImagesArePinned(t *testing.T) {
	t.Parallel()
	stages := dockerfile(t)
	pinned := regexp.MustCompile(`^[a-z/]+:v?\d+\.\d+\.\d+(-[a-z0-9.]+)?$`)
	for _, s := range composeProject(t).Services {
		if s.Build == nil && !pinned.MatchString(s.Image) {
			t.Errorf("%s: image %q: want a whole version", s.Name, s.Image)
		}
		if s.Build != nil && stages[s.Build.Target] == nil {
			t.Errorf("%s: the Dockerfile has no target %q", s.Name, s.Build.Target)
		}
		if s.Name == "envoy" && !strings.HasPrefix(s.Image, "envoyproxy/envoy:v"+devstack.EnvoyVersion+".") {
			t.Errorf("envoy: image %s: want version %s", s.Image, devstack.EnvoyVersion)
		}
	}
	for name, lines := range stages {
		from := strings.Fields(lines[0])[1]
		switch {
		case name == "build" && !pinned.MatchString(from):
			t.Errorf("build: FROM %s: want a whole version", from)
		case name != "build" && from != "scratch":
			t.Errorf("%s: FROM %s: want scratch", name, from)
		case name != "build" && !slices.Contains(lines, "USER 65532:65532"):
			t.Errorf("%s: want a user by number that is not root's", name)
		}
	}
	if !slices.Contains(strings.Fields(strings.Join(stages["build"], " ")), "CGO_ENABLED=0") {
		t.Error("build: scratch needs static programs: want CGO_ENABLED=0")
	}
}

// dockerfile returns the lines of each stage by its name.
func dockerfile(t *testing.T) map[string][]string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(root, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	stages, name := map[string][]string{}, ""
	for line := range strings.Lines(string(content)) {
		words := strings.Fields(line)
		if len(words) == 4 && words[0] == "FROM" {
			name = words[3]
		}
		if name != "" && len(words) > 0 {
			stages[name] = append(stages[name], strings.TrimSpace(line))
		}
	}
	return stages
}

// TestDockerfileHasTheModulesGo checks that the image that builds is of go.mod's
// language version and not older.
func TestDockerfileHasTheModulesGo(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`(?:\ngo |golang:)(\d+\.\d+)\.(\d+)`)
	want := version.FindStringSubmatch(string(content))
	have := version.FindStringSubmatch(strings.Join(dockerfile(t)["build"], "\n"))
	if len(want) != 3 || len(have) != 3 {
		t.Fatalf("no version in go.mod (%q) or in the Dockerfile (%q)", want, have)
	}
	wantPatch, _ := strconv.Atoi(want[2]) // digits, says the expression
	havePatch, _ := strconv.Atoi(have[2])
	if have[1] != want[1] || havePatch < wantPatch {
		t.Errorf("the Dockerfile builds with Go %s.%s, go.mod wants %s.%s", have[1], have[2], want[1], want[2])
	}
}

// TestDockerfileGetsEveryPackage checks that the build context, which
// .dockerignore narrows, holds what the programs are made of.
func TestDockerfileGetsEveryPackage(t *testing.T) {
	t.Parallel()
	ignore, err := os.ReadFile(filepath.Join(root, ".dockerignore"))
	if err != nil {
		t.Fatal(err)
	}
	list := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", `{{with .Module}}{{if .Main}}{{$.ImportPath}}{{end}}{{end}}`, "./cmd/tiergate", "./cmd/mockai")
	list.Dir = root
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	build := dockerfile(t)["build"]
	for path := range strings.FieldsSeq(string(out)) {
		top, _, _ := strings.Cut(strings.TrimPrefix(path, "github.com/tiergate/tiergate/"), "/")
		if !slices.Contains(strings.Fields(string(ignore)), "!"+top) || !slices.Contains(build, "COPY "+top+" "+top) {
			t.Errorf("%s: .dockerignore or the Dockerfile leaves %s out", path, top)
		}
	}
}
