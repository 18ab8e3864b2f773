//! Why a call was refused, in words for the person who fills in Weni's settings.

use super::{RefusedCall, TEXT_BYTES_MAX};

/// The same sentence in both languages.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[expect(missing_docs, reason = "the names are the languages'")]
pub struct Words {
    pub pt: String,
    pub en: String,
}

/// What to do with a header's value that holds a right secret and more, in both languages.
pub(crate) type Remedy = [&'static str; 2];

pub(crate) const IN_QUOTES: Remedy = [
    "O segredo certo está lá, entre aspas ou colchetes: tire-os.",
    "The right secret is there, in quotation marks or brackets: remove them.",
];
/// The word is `Bearer`, say, or the header's own name.
pub(crate) const AFTER_A_WORD: Remedy = [
    "O segredo certo está lá, depois de outra palavra: deixe só o segredo.",
    "The right secret is there, after another word: leave only the secret.",
];
pub(crate) const WITH_BLANKS: Remedy = [
    "O segredo certo está lá, com espaços ou caracteres invisíveis no meio: copie-o de novo.",
    "The right secret is there, with blanks or invisible characters in it: copy it again.",
];
const COPY_AGAIN: Remedy = [
    "Copie o Valor de novo, do começo ao fim.",
    "Copy Valor again, from its first character to its last.",
];

/// Names of sources that a sentence lists at most.
const NAMES_SHOWN: usize = 5;

/// Explains a refused call.
pub fn explain(refused: &RefusedCall) -> Words {
    refused.why.as_deref().cloned().unwrap_or_else(|| by_reason(refused.reason))
}

fn words(pt: impl Into<String>, en: impl Into<String>) -> Words {
    Words { pt: pt.into(), en: en.into() }
}

impl Words {
    fn and(self, pt: &str, en: &str) -> Self {
        words([&self.pt, " ", pt].concat(), [&self.en, " ", en].concat())
    }
}

/// The header with the secret is missing. The caller's own headers are `present`, and `misplaced` is
/// the one of them that has a right secret.
pub(crate) fn missing(header: &str, present: &[&str], misplaced: Option<&str>) -> Words {
    let said = words(format!("Falta o header {header}."), format!("{header} is missing."));
    if let Some(name) = misplaced {
        return said.and(
            &format!("O segredo certo veio em {name}: em Cabeçalhos, a Chave tem de ser {header}."),
            &format!(
                "The right secret came in {name}: under Cabeçalhos, Chave has to be {header}."
            ),
        );
    }
    if present.is_empty() {
        return said.and(
            "A chamada não trouxe nenhum header próprio: em Cabeçalhos, adicione Chave e Valor.",
            "The call had no header of its own: under Cabeçalhos, add Chave and Valor.",
        );
    }
    let names = present.join(", ");
    said.and(&format!("A chamada trouxe {names}."), &format!("The call had {names}."))
}

/// The header's value has `chars` characters and is no secret. `secrets` are the characters of each
/// secret.
pub(crate) fn wrong(
    header: &str,
    chars: usize,
    secrets: &[usize],
    remedy: Option<Remedy>,
) -> Words {
    let said = match secrets {
        [] => words(
            format!("Este source não tem segredo para {header}."),
            format!("This source has no secret for {header}."),
        ),
        secrets if secrets.contains(&chars) => words(
            format!("{header} veio com {chars} caracteres, como o segredo, mas com outro valor."),
            format!(
                "{header} came with {chars} characters, as the secret has, but with another value."
            ),
        ),
        secrets => {
            let lengths: Vec<_> = secrets.iter().map(usize::to_string).collect();
            let [ou, or] = [" ou ", " or "].map(|or| lengths.join(or));
            words(
                format!("{header} veio com {chars} caracteres; o segredo tem {ou}."),
                format!("{header} came with {chars} characters; the secret has {or}."),
            )
        }
    };
    let [pt, en] = remedy.unwrap_or(COPY_AGAIN);
    said.and(pt, en)
}

/// The secret is the name of a header.
pub(crate) fn exchanged(header: &str) -> Words {
    words(
        format!("Chave e Valor estão trocados: a Chave é {header}, e o Valor é o segredo."),
        format!("Chave and Valor are exchanged: Chave is {header}, and Valor is the secret."),
    )
}

/// The path is that of none of the `sources`.
pub(crate) fn wrong_path<'s>(path: &str, sources: impl Iterator<Item = &'s str> + Clone) -> Words {
    let path = shown_path(path);
    let said = words(format!("O caminho é {path}."), format!("The path is {path}."));
    let last = path.trim_end_matches(['/', '…']).rsplit('/').next().unwrap_or_default();
    let typed = last.trim().to_ascii_lowercase();
    // Measuring is dear, and a name of another length is too far away in any case.
    let may_be_near = |name: &&str| typed.len().abs_diff(name.len()) <= name.len() / 3 + 1;
    let nearest = sources
        .clone()
        .filter(may_be_near)
        .map(|name| (strsim::osa_distance(&typed, name), name))
        .min()
        .filter(|(distance, name)| *distance <= name.len() / 3 + 1);
    match nearest {
        Some((0, name)) => said.and(
            &format!("Ele tem de ser /hooks/{name}."),
            &format!("It has to be /hooks/{name}."),
        ),
        Some((_, name)) => said.and(
            &format!("Você quis dizer /hooks/{name}?"),
            &format!("Did you mean /hooks/{name}?"),
        ),
        None => {
            let mut names: Vec<_> = sources.clone().take(NAMES_SHOWN).collect();
            if sources.count() > NAMES_SHOWN {
                names.push("…");
            }
            let names = names.join(", ");
            said.and(
                &format!("Ele tem de ser /hooks/ e o nome de um source: {names}."),
                &format!("It has to be /hooks/ and the name of a source: {names}."),
            )
        }
    }
}

/// The body is larger than this many bytes.
pub(crate) fn too_large(max_bytes: usize) -> Words {
    words(
        format!("O corpo é maior que http.max_body_bytes ({max_bytes} bytes)."),
        format!("The body is larger than http.max_body_bytes ({max_bytes} bytes)."),
    )
}

/// The first two segments of a path. What follows may be a secret. A `%` may stand for a slash.
fn shown_path(path: &str) -> String {
    let third = path.match_indices('/').nth(2).map(|(third, _)| third + 1);
    let end = third.into_iter().chain(path.find('%')).min().unwrap_or(path.len());
    let rest = if end < path.len() { "…" } else { "" };
    [&path[..path.floor_char_boundary(end.min(TEXT_BYTES_MAX))], rest].concat()
}

/// What the reason alone says.
fn by_reason(reason: &str) -> Words {
    match reason {
        "auth" => words(
            "O header com o segredo falta ou está errado.",
            "The header with the secret is missing or wrong.",
        ),
        "unknown_source" => {
            words("O caminho não é o de nenhum source.", "The path is not that of any source.")
        }
        "too_large" => words(
            "O corpo é maior que http.max_body_bytes.",
            "The body is larger than http.max_body_bytes.",
        ),
        "timeout" => words(
            "A chamada não chegou inteira a tempo. Quem chama, ou a rede, é lento demais.",
            "The call did not arrive whole in time. The caller or the network is too slow.",
        ),
        "journal_full" => words(
            "O journal está cheio: o Kafka está fora do ar há muito tempo, ou o limite é pequeno. \
             A Weni não repete esta chamada.",
            "The journal is full: Kafka has been away for long, or the limit is small. Weni does not \
             repeat this call.",
        ),
        "journal_slow" => words(
            "O disco está lento demais, ou o journal falhou. A Weni não repete esta chamada.",
            "The disk is too slow, or the journal has failed. Weni does not repeat this call.",
        ),
        "overloaded" => words(
            "As chamadas em andamento ocupam http.max_memory_bytes. A Weni não repete esta chamada.",
            "Calls in progress hold http.max_memory_bytes. Weni does not repeat this call.",
        ),
        "malformed" => words(
            "O que chegou não é uma chamada HTTP inteira: o nome de um header (a Chave) tem um espaço \
             ou outro caractere proibido, a conexão caiu no meio, ou a URL tem http:// onde é https:// \
             (ou o contrário).",
            "What arrived is no whole HTTP call: a header's name (the Chave) has a blank or another \
             character that no name may have, the connection broke, or the URL has http:// where \
             https:// belongs (or the reverse).",
        ),
        other => words(format!("Recusada: {other}."), format!("Refused: {other}.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_header_is_explained_by_lengths_and_names() {
        let wrong = |chars, remedy| wrong("X-Token", chars, &[32, 40], remedy);
        let text = wrong(36, None);
        assert!(text.en.starts_with("X-Token came with 36 characters; the secret has 32 or 40."));
        assert!(text.pt.starts_with("X-Token veio com 36 caracteres; o segredo tem 32 ou 40."));
        assert!(wrong(40, None).en.contains("but with another value."));
        assert!(wrong(34, Some(IN_QUOTES)).en.contains("quotation marks"));
        let missing =
            |present: &[&str], misplaced| super::missing("X-Token", present, misplaced).en;
        assert_eq!(
            missing(&["authorization"], None),
            "X-Token is missing. The call had authorization."
        );
        assert!(missing(&["token"], Some("token")).contains("The right secret came in token"));
        assert!(missing(&[], None).contains("no header of its own"));
    }

    #[test]
    fn a_path_is_compared_with_the_sources_that_there_are() {
        let path = |path: &str, sources: &[&str]| wrong_path(path, sources.iter().copied()).en;
        assert_eq!(
            path("/hooks/loga", &["filial", "loja"]),
            "The path is /hooks/loga. Did you mean /hooks/loja?"
        );
        assert!(path("/hooks/loja/secret", &["loja"]).ends_with("It has to be /hooks/loja."));
        assert!(path("/webhook/loja/", &["loja"]).ends_with("It has to be /hooks/loja."));
        assert!(
            path("/", &["a1", "b2", "c3", "d4", "e5", "f6"]).ends_with("a1, b2, c3, d4, e5, ….")
        );
    }

    #[test]
    fn no_more_than_two_segments_of_a_path_are_kept() {
        for path in ["/", "/hooks/loga", "/webhook/loja/", "no path"] {
            assert_eq!(shown_path(path), path);
        }
        assert_eq!(shown_path("/hooks/loja/5f0c1e6a7b2d4983"), "/hooks/loja/…");
        assert_eq!(shown_path("/hooks/loja%2F5f0c1e6a7b2d4983"), "/hooks/loja…");
        let long = shown_path(&"s".repeat(TEXT_BYTES_MAX + 1));
        assert_eq!(long.len(), TEXT_BYTES_MAX);
    }
}
