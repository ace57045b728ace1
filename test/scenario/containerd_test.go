package scenario

func (m *machine) startContainerd(archive string) { m.t.Skip("later") }
