// Puts the kernels of the list in another order.
const list = document.querySelector(".kernels");
const select = document.querySelector("#order");
const first = [...list.children];

select.addEventListener("change", () => {
  const name = select.value;
  const value = (item) => Number(item.dataset[name] || -Infinity);
  list.replaceChildren(...(name ? first.toSorted((a, b) => value(b) - value(a)) : first));
});
select.closest("p").hidden = false;
