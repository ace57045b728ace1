package progress

import (
	"fmt"
	"strings"
)

// Bar draws a download: what it is, how much of it there is, and how much of
// it is done, both in bytes. A total of 0 is not known yet.
func Bar(name, state string, done, total int64) string {
	if total <= 0 {
		return fmt.Sprintf("%s  %s", name, state)
	}
	const width = 28
	done = min(done, total)
	filled := int(done * width / total)
	bar := strings.Repeat("━", filled) + strings.Repeat("─", width-filled)
	return fmt.Sprintf("%s  %s %3d%%  %s / %s  %s", name, bar, done*100/total, Bytes(done), Bytes(total), state)
}

// Bytes prints a number of bytes in binary units with three digits.
func Bytes(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n), 0
	for f >= 999.5 && unit < 6 {
		f /= 1024
		unit++
	}
	digits := 0
	switch {
	case f < 9.995:
		digits = 2
	case f < 99.95:
		digits = 1
	}
	return fmt.Sprintf("%.*f %ciB", digits, f, "?KMGTPE"[unit])
}
