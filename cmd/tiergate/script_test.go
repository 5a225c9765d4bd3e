package main

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tiergate/tiergate/internal/devstack"
	"github.com/tiergate/tiergate/internal/envoyapi"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"tiergate": main})
}

// TestScripts runs the command line as testdata/*.txtar says: each is a session
// at a terminal, with the shipped configuration at config/.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup:               setUp,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"await": await, "fill": fill, "admin": admin, "keyof": keyOf, "many": many, "append": appendFile, "guess": guess, "requests": requests,
		},
	})
}

// TestEveryCommandSpeaksJSON, but for the one that serves.
func TestEveryCommandSpeaksJSON(t *testing.T) {
	t.Parallel()
	for _, c := range commands() {
		var help bytes.Buffer
		err := run(t.Context(), append(strings.Fields(c.name), "--help"), environment{getenv: os.Getenv, stdout: &help})
		if err != nil || strings.Contains(help.String(), "\n  --json\n") == (c.name == "serve") {
			t.Errorf("%s: %v:\n%s", c.name, err, help.String())
		}
	}
}

// setUp copies the shipped configuration and finds three free addresses.
func setUp(env *testscript.Env) error {
	if err := os.Mkdir(filepath.Join(env.WorkDir, "config"), 0o700); err != nil {
		return err
	}
	for _, name := range []string{"tiergate.yaml", "keys.yaml"} {
		content, err := os.ReadFile(filepath.Join("../../config", name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(env.WorkDir, "config", name), content, 0o600); err != nil {
			return err
		}
	}
	env.Values[theGate{}] = new(envoyapi.Authz)
	env.Setenv("GORACE", "atexit_sleep_ms=0") // else each command takes a second
	for _, name := range []string{"GRPC", "OPERATOR", "CUSTOMER"} {
		address, err := devstack.FreeAddress()
		if err != nil {
			return err
		}
		env.Setenv(name, address)
	}
	return nil
}

// await asks for a page until it is there: await URL.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: await URL")
	}
	end := time.After(10 * time.Second)
	for {
		response, err := http.Get(args[0])
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return
			}
			err = fmt.Errorf("%s", response.Status)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-end:
			ts.Fatalf("not within ten seconds: %v", err)
		}
	}
}

// fill appends the last lines of the latest output, those after an empty line,
// to a file: fill FILE. It is what a person does who pastes them.
func fill(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: fill FILE")
	}
	ts.Check(appendEntry(ts.MkAbs(args[0]), ts.ReadFile("stdout")))
}

func appendEntry(file, output string) error {
	entry := output[lastBlank(output):]
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(entry); err != nil {
		return err
	}
	return f.Close()
}

func lastBlank(text string) int {
	for i := len(text) - 2; i > 0; i-- {
		if text[i-1:i+1] == "\n\n" {
			return i + 1
		}
	}
	return 0
}
