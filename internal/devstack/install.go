package devstack

import (
	"fmt"
	"os"
	"path/filepath"
)

// Install returns the directory of a name below the cache, where a tool is installed once:
// unless what is there is whole, it is made in another one, which gets the name when it is
// whole too. Processes that install the same at the same time do not disturb each other.
func Install(cache, name string, whole, install func(dir string) error) (string, error) {
	final := filepath.Join(cache, name)
	if whole(final) == nil {
		return final, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", fmt.Errorf("make the cache: %w", err)
	}
	fresh, err := os.MkdirTemp(cache, name+"-new-")
	if err != nil {
		return "", fmt.Errorf("make a directory below the cache: %w", err)
	}
	defer os.RemoveAll(fresh)
	if err := install(fresh); err != nil {
		return "", err
	}
	if err := whole(fresh); err != nil {
		return "", err
	}
	// One of another process is as good; one that is not whole is in the way.
	if err := os.Rename(fresh, final); err != nil && whole(final) != nil {
		return "", fmt.Errorf("%w: remove %s and try again", err, final)
	}
	return final, nil
}
