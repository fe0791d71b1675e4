package router

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"lokinetd/router/key"
	"lokinetd/router/statefile"
)

// Who may call a service: a folder with a file for each client, so that people are added and struck off by making and removing files. It is read at the start and
// at each reload.

const (
	clientSuffix  = ".client"
	maxClients    = 4096
	maxClientFile = 4 << 10 // bytes
)

// clientList is who may have sessions with a service, and what the files are called. nil: everybody.
type clientList map[key.Public]string

// readClients reads such a folder. What cannot be read lets nobody in and is part of the error; the rest holds all the same. The list is never nil.
func readClients(dir string) (clientList, error) {
	list := clientList{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return list, err
	}
	var errs []error
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), clientSuffix)
		if !ok || name == "" || strings.HasPrefix(name, ".") {
			continue
		}
		file := filepath.Join(dir, e.Name())
		k, err := readClient(file)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if len(list) == maxClients {
			errs = append(errs, fmt.Errorf("%s: more than %d clients", dir, maxClients))
			break
		}
		list[k] = name
	}
	if len(entries) > 0 && len(list) == 0 && len(errs) == 0 {
		errs = append(errs, fmt.Errorf("%s: no file in it ends in %s", dir, clientSuffix))
	}
	return list, errors.Join(errs...)
}

// readClient reads the file of a client: one line with its address; empty lines and what follows a # do not count.
func readClient(file string) (k key.Public, err error) {
	raw, err := statefile.Read(file, maxClientFile)
	if err != nil {
		return k, err
	}
	found := 0
	for line := range strings.Lines(string(raw)) {
		text, _, _ := strings.Cut(line, "#")
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		a, err := key.ParseAddress(text)
		switch {
		case err != nil:
			return k, fmt.Errorf("%s: %q is not an address: want 52 characters and .loki", file, text)
		case a.Kind != key.Client:
			return k, fmt.Errorf("%s: %s is a relay's address, not a client's", file, text)
		case a.Key.Check() != nil:
			return k, fmt.Errorf("%s: %s is nobody's address", file, text)
		}
		k = a.Key
		found++
	}
	switch found {
	case 0:
		return k, fmt.Errorf("%s: no address in it", file)
	case 1:
		return k, nil
	}
	return k, fmt.Errorf("%s: %d addresses; each client has a file of its own", file, found)
}

// allows is session.Config.Only of a service.
func (e *hostEndpoint) allows(remote key.Public, proven bool) bool {
	list := e.clients.Load()
	if *list == nil {
		return true
	}
	_, ok := (*list)[remote]
	return ok && proven
}

// setClients reads who may call a service.
func (e *hostEndpoint) setClients() error {
	s := e.service.Load()
	if s.Clients == "" {
		e.clients.Store(new(clientList))
		return nil
	}
	list, err := readClients(s.Clients)
	e.clients.Store(&list)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission):
		err = fmt.Errorf("%w (the daemon must be able to read it)", err)
	case err == nil && len(list) == 0:
		err = fmt.Errorf("%s is empty", s.Clients)
	}
	if err != nil {
		err = fmt.Errorf("service %s: clients: %w; %s may call it", s.Name, err, map[bool]string{true: "nobody", false: "only the other clients"}[len(list) == 0])
	}
	return err
}

// readClientLists reads who may call the services, and ends the sessions of who may not any more. What is wrong is logged and kept for status.
func (h *host) readClientLists() {
	if h.served.Load() == nil { // a relay
		return
	}
	var errs []error
	for _, e := range h.endpoints {
		if e.service.Load() != nil {
			errs = append(errs, e.setClients())
			e.Sessions.Recheck()
		}
	}
	h.ofClients.Store(nil)
	h.wrong(&h.ofClients, "clients that may call", errors.Join(errs...))
}
