// Keeps the fragment of the page's address, which no server sees, over the next step.
const link = document.querySelector("a.go");
if (link && location.hash && !link.search.includes("%23")) {
  const isSamePage = link.pathname === location.pathname;
  link.href += isSamePage ? location.hash : encodeURIComponent(location.hash);
}
