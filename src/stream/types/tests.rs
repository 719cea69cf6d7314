//! Built-in types by their OIDs, and others by what a catalog says of them.

use super::*;

fn array(element: Form) -> Form {
    Form::Array(Box::new(element), b',')
}

#[test]
fn built_in_types_have_their_forms() {
    let forms = [
        (20, Form::Integer),
        (21, Form::Integer),
        (23, Form::Integer),
        (26, Form::Text), // oid
        (28, Form::Text), // xid
        (700, Form::Float),
        (701, Form::Float),
        (790, Form::Text),  // money
        (1700, Form::Text), // numeric
        (16, Form::Bool),
        (17, Form::Bytea),
        (25, Form::Text),
        (1042, Form::Text), // char(n)
        (1082, Form::Date),
        (1083, Form::Text), // time
        (1114, Form::Timestamp),
        (1184, Form::TimestampTz),
        (1186, Form::Text), // interval
        (1266, Form::Text), // timetz
        (114, Form::Json),
        (3802, Form::Json),
        (869, Form::Inet),
        (650, Form::Text),  // cidr
        (2950, Form::Text), // uuid
        (22, Form::Text),   // int2vector
        (1007, array(Form::Integer)),
        (1016, array(Form::Integer)),
        (1009, array(Form::Text)),
        (1231, array(Form::Text)),
        (199, array(Form::Json)),
        (3807, array(Form::Json)),
        (1185, array(Form::TimestampTz)),
        (1041, array(Form::Inet)),
        (1000, array(Form::Bool)),
        (1001, array(Form::Bytea)),
        (1006, array(Form::Text)), // int2vector[]
        (2951, array(Form::Text)), // uuid[]
        (1020, Form::Array(Box::new(Form::Text), b';')),
    ];
    for (oid, form) in forms {
        assert_eq!(Form::of(oid), Some(form), "{oid}");
    }
    assert_eq!(Form::of(0), None);
    assert_eq!((Form::of(FIRST_GENERATED - 1), Form::of(FIRST_GENERATED)), (Some(Form::Text), None));
}

#[test]
fn every_built_in_array_is_found() {
    assert!(ARRAYS.is_sorted_by_key(|(array, _)| *array), "they are found by halving");
    for (oid, element) in ARRAYS {
        assert!(matches!(Form::of(*oid), Some(Form::Array(..))), "{oid} of {element}");
    }
}

#[test]
fn a_type_over_others_is_known_when_all_of_them_are() {
    let mut types = Types::default();
    let (domain, list, mood) = (20_000, 20_001, 20_002);
    types.learn(domain, Described::Same(list));
    types.learn(list, Described::Array { element: mood, delimiter: b',' });
    assert_eq!(types.form(domain), Form::Text);
    types.learn(mood, Described::Same(23));
    assert_eq!(types.form(domain), array(Form::Integer));
    types.learn(mood, Described::Text);
    assert_eq!(types.form(domain), array(Form::Text), "what is learned later counts");
}

#[test]
fn types_that_go_round_in_circles_are_text() {
    let mut types = Types::default();
    types.learn(20_000, Described::Same(20_001));
    types.learn(20_001, Described::Same(20_000));
    assert_eq!(types.form(20_000), Form::Text);
}

#[test]
fn as_many_types_are_kept_as_there_is_place_for() {
    let mut types = Types::default();
    for oid in 0..=MAX_TYPES as u32 {
        types.learn(20_000 + oid, Described::Same(23));
    }
    assert_eq!(types.form(20_000), Form::Text);
    assert_eq!(types.form(20_000 + MAX_TYPES as u32), Form::Integer);
}
