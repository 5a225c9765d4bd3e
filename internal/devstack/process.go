package devstack

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// A Process is a program that was started.
type Process struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how it ended; read after done
}

// Start starts a program. Its output goes to out.
func Start(name string, words []string, environment []string, out io.Writer) (*Process, error) {
	cmd := exec.Command(words[0], words[1:]...) //nolint:noctx // our own words; ended by Stop, in order
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(os.Environ(), environment...)
	// A group of its own: Ctrl-C in the terminal reaches the starter alone,
	// which stops the programs in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &Process{name: name, cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// commandLine is what to type to start the program again.
func (p *Process) commandLine() string {
	words := make([]string, len(p.cmd.Args))
	for i, word := range p.cmd.Args {
		words[i] = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
		if plainWord.MatchString(word) {
			words[i] = word
		}
	}
	return strings.Join(words, " ")
}

// plainWord is one that a shell takes as it is.
var plainWord = regexp.MustCompile(`^[A-Za-z0-9_./:-]+$`)

// PID returns the process ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal.
func (p *Process) Signal(s os.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("send %s to %s: %w", s, p.name, err)
	}
	return nil
}

// Stop ends the process by SIGTERM, or by SIGKILL if that takes longer than the
// grace, and waits. An ended process is no error.
func (p *Process) Stop(grace time.Duration) error {
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(grace):
	}
	if err := p.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.done
	return fmt.Errorf("%s did not stop within %s and was killed", p.name, grace)
}
