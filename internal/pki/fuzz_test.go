package pki

import (
	"testing"
	"time"

	"k8s.io/utils/clock"
)

// What is accepted is written again as something that is accepted.
func FuzzFiles(f *testing.F) {
	a, err := Open("", clock.RealClock{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(a.ca.encode())
	accounts, err := encodeAccountKeys(append(a.accounts, accountKey{nil, a.ca[0].key.Public()}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(accounts)
	secrets, err := encodeEncryptionKeys(a.secrets)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(secrets)
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if r, err := parseRoots(text); err == nil {
			r.signer(time.Now())
			if _, err := parseRoots(r.encode()); err != nil {
				t.Errorf("authorities: %v", err)
			}
		}
		if k, err := parseAccountKeys(text); err == nil {
			out, err := encodeAccountKeys(k)
			if err == nil {
				_, err = parseAccountKeys(out)
			}
			if err != nil {
				t.Errorf("account keys: %v", err)
			}
		}
		if k, err := parseEncryptionKeys(text); err == nil {
			out, err := encodeEncryptionKeys(k)
			if err == nil {
				_, err = parseEncryptionKeys(out)
			}
			if err != nil {
				t.Errorf("encryption keys: %v", err)
			}
		}
	})
}
