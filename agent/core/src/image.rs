//! Names of images (the distribution project's reference grammar, and Docker's familiar short forms).

/// Docker Hub, as names of images have it.
pub const HUB: &str = "docker.io";

/// The one name by which an image is known here, however it was written: as engines list it, with the tag
/// that a name without one means, and without what stands for Docker Hub.
#[must_use]
pub fn familiar(reference: &str) -> String {
    let (name, rest) = reference.split_at(name_end(reference));
    let rest = if rest.is_empty() { ":latest" } else { rest };
    format!("{}{rest}", short(name))
}

/// The reference with `:latest` where it names neither tag nor digest: without one an engine would pull every
/// tag of the repository.
#[must_use]
pub fn with_tag(reference: &str) -> String {
    if name_end(reference) == reference.len() { format!("{reference}:latest") } else { reference.to_owned() }
}

/// The repository of a reference: no tag, no digest, and what stands for Docker Hub left out.
#[must_use]
pub fn repository(reference: &str) -> &str {
    short(&reference[..name_end(reference)])
}

/// The registry that an image is kept in.
#[must_use]
pub fn registry(reference: &str) -> String {
    match reference.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => normal_registry(first),
        _ => HUB.to_owned(),
    }
}

/// One name for each registry, however an operator or a login wrote it.
#[must_use]
pub fn normal_registry(registry: &str) -> String {
    let bare = registry.trim_start_matches("https://").trim_start_matches("http://");
    let bare = bare.split('/').next().unwrap_or_default();
    match bare {
        "index.docker.io" | "registry-1.docker.io" => HUB.to_owned(),
        other => other.to_owned(),
    }
}

/// Where a reference's name ends, and its tag or digest begins.
fn name_end(reference: &str) -> usize {
    let end = reference.find('@').unwrap_or(reference.len());
    let last = reference[..end].rfind('/').map_or(0, |slash| slash + 1);
    reference[last..end].find(':').map_or(end, |colon| last + colon)
}

fn short(name: &str) -> &str {
    let hub =
        ["docker.io/library/", "index.docker.io/library/", "docker.io/", "index.docker.io/", "library/"];
    hub.into_iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_one_name_however_it_was_written() {
        for (written, name) in [
            ("web", "web:latest"),
            ("docker.io/library/web:1", "web:1"),
            ("library/web@sha256:0", "web@sha256:0"),
            ("localhost:5000/a/web", "localhost:5000/a/web:latest"),
            ("localhost:5000/a/web:2@sha256:0", "localhost:5000/a/web:2@sha256:0"),
        ] {
            assert_eq!(familiar(written), name);
        }
    }

    #[test]
    fn repositories_and_tags() {
        assert_eq!(repository("localhost:5000/a/b:1@sha256:x"), "localhost:5000/a/b");
        assert_eq!(with_tag("localhost:5000/a"), "localhost:5000/a:latest");
        assert_eq!(with_tag("a:1"), "a:1");
        assert_eq!(with_tag("a@sha256:0"), "a@sha256:0");
    }

    #[test]
    fn an_images_name_tells_its_registry() {
        for (image, expected) in [
            ("web", HUB),
            ("library/web:1", HUB),
            ("index.docker.io/library/web", HUB),
            ("localhost/web", "localhost"),
            ("127.0.0.1:5000/a/web:1", "127.0.0.1:5000"),
            ("registry.local/a@sha256:00", "registry.local"),
        ] {
            assert_eq!(registry(image), expected, "{image}");
        }
        assert_eq!(normal_registry("https://registry.local/v2/"), "registry.local");
    }
}
