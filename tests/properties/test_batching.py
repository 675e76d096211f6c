"""A batch is its graphs, one by one."""

import torch
from torch_geometric.data import Batch


def parts(output, batch, flat):
    """Rows of each graph: its nodes', or its own if the model pools."""
    rows = flat(output)
    if rows.shape[0] == batch.num_graphs:
        return list(rows.split(1))
    return list(rows.split(batch.batch.bincount(minlength=batch.num_graphs).tolist()))


def test_batch_equals_single(make_model, chiral, chain, make_graph, flat):
    model = make_model().double()
    atom = make_graph([[0.3, 0.1, -2.0]], [])
    graphs = [chiral, atom, chain, chiral.clone()]
    batch = Batch.from_data_list(graphs)
    for got, graph in zip(parts(model(batch), batch, flat), graphs, strict=True):
        torch.testing.assert_close(got, flat(model(graph)), rtol=0, atol=1e-12)


def test_gradients_of_a_batch_are_the_sum_of_the_singles(make_model, chiral, chain, flat):
    model = make_model().double()

    def gradients(graph):
        loss = flat(model(graph)).square().sum()
        return torch.autograd.grad(loss, list(model.parameters()))

    together = gradients(Batch.from_data_list([chiral, chain]))
    for got, one, two in zip(together, gradients(chiral), gradients(chain), strict=True):
        torch.testing.assert_close(got, one + two, rtol=1e-9, atol=1e-10)


def test_no_gradient_leaks_between_graphs(make_model, chiral, chain, flat):
    model = make_model().double()
    batch = Batch.from_data_list([chiral, chain])
    for name in ("x", "pos", "edge_attr"):
        batch[name].requires_grad_()
    parts(model(batch), batch, flat)[0].sum().backward()
    nodes, edges = chiral.num_nodes, chiral.num_edges
    for name, own in (("x", nodes), ("pos", nodes), ("edge_attr", edges)):
        gradient = batch[name].grad
        assert gradient[:own].any(), name
        assert not gradient[own:].any(), name


def test_far_apart_atoms_do_not_change_each_other(make_model, chain, flat):
    """Without an edge between them, two copies in one graph do not know of one another."""
    model = make_model(**{"pooling": "mean"}).double()
    twice = chain.clone()
    twice.x, twice.edge_attr = chain.x.repeat(2, 1), chain.edge_attr.repeat(2, 1)
    twice.pos = torch.cat([chain.pos, chain.pos + 1000])
    twice.edge_index = torch.cat([chain.edge_index, chain.edge_index + 6], dim=1)
    torch.testing.assert_close(flat(model(twice)), flat(model(chain)), rtol=0, atol=1e-9)
