//go:build !linux

package store

import "os"

// openUnnamed returns a file that has lost its name already, and so ends with the
// process.
func openUnnamed(string, int, os.FileMode) (*os.File, error) {
	file, err := os.CreateTemp("", "tiergate-*.db")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(file.Name()); err != nil {
		return nil, err
	}
	return file, nil
}

// holder would name the process that has locked a file.
func holder(string) string { return "" }
